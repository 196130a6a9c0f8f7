"""The commands for own texts: `mine`, `rewrite` and `forget`. Options only; the work is imported when one is called."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.presets import PRESETS
from rpo_kit.runs import existing_run, run_file
from rpo_kit.setting_values import from_options


def add_own_voice(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_mine(commands)
    about = "rewrite a draft in your own voice, with a run that `mine` trained"
    rewrite = commands.add_parser("rewrite", help=about, description=about)
    rewrite.add_argument("file", metavar="FILE", help="the draft, plain text; - reads it from the standard input")
    rewrite.add_argument("--run", default="mine", help="the run (default: mine)")
    rewrite.add_argument("--base", metavar="MODEL", help="another base model than the run's")
    rewrite.add_argument("--generic", action="store_true", help="also print what the base model alone writes")
    rewrite.set_defaults(command=_rewrite)
    about = "delete a run that `mine` made, with all texts in it and its forks, and say what was deleted"
    forget = commands.add_parser("forget", help=about, description=about)
    forget.add_argument("name", metavar="NAME", help="the run")
    forget.add_argument("--yes", action="store_true", help="do not ask first")
    forget.set_defaults(command=_forget)


def _add_mine(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "train a reflection module on your own texts (CSV, JSONL, plain text, mbox), on this machine"
    mine = commands.add_parser("mine", help=about, description=about)
    mine.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files with your texts")
    mine.add_argument("--run", default="mine", help="name of the run (default: mine)")
    mine.add_argument("--look", action="store_true", help="only read the files and show what would be used")
    reading = mine.add_argument_group("what is read (guessed and shown by default)")
    about = "of the files; lines: plain text in which every line is a text"
    reading.add_argument("--format", choices=("csv", "jsonl", "json", "mbox", "text", "lines"), default="", help=about)
    reading.add_argument("--text", metavar="COLUMN", default="", help="the column or field with the texts")
    reading.add_argument("--author-column", metavar="COLUMN", default="", help="… with their authors (none: without)")
    reading.add_argument("--date", metavar="COLUMN", default="", help="… with their dates (none: without)")
    reading.add_argument("--separator", metavar="LINE", default="", help="the line between plain texts, as in ---")
    reading.add_argument("--author", metavar="NAME", default="", help="whose texts (default: whoever wrote most)")
    reading.add_argument("--language", metavar="NAME", default="", help="use one language only, as in English")
    reading.add_argument("--min-words", type=int, default=4, metavar="N", help="of a text (default: 4)")
    reading.add_argument("--max-words", type=int, default=2000, metavar="N", help="of a text (default: 2000)")
    reading.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="newest texts to test on (0.2)")
    training = mine.add_argument_group("what is trained")
    training.add_argument("--base", metavar="MODEL", default="", help="the base model (default: the preset's)")
    about = "who writes the neutral versions (auto: the base model, but rules in place of the bundled one)"
    training.add_argument("--neutral", choices=("auto", "base", "rules"), default="auto", help=about)
    training.add_argument("--preset", choices=sorted(PRESETS), default="cpu", help="sizes to start from (default: cpu)")
    training.add_argument("--rl", action="store_true", help="refine with RL after SFT")
    training.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, as in sft.steps=90"
    )
    mine.set_defaults(command=_mine)


def _mine(options: argparse.Namespace) -> None:
    from rpo_kit.lamp.own_texts.cleaning import Choice
    from rpo_kit.lamp.own_texts.columns import Columns
    from rpo_kit.lamp.own_texts.files import Options
    from rpo_kit.study.mine import Wanted, mine

    columns = Columns(options.text, options.author_column, options.date)
    wanted = Wanted(
        Options(options.format, columns, options.separator),
        Choice(options.author, options.language, options.min_words, options.max_words),
        options.base,
        options.neutral,
        options.held_out,
        options.preset,
        from_options(options.set),
        options.rl,
    )
    mine(options.files, options.run, wanted, options.look)


def _rewrite(options: argparse.Namespace) -> None:
    from rpo_kit.lamp.own_texts.text import decoded
    from rpo_kit.rewriting.own_voice import OwnVoice, why_left

    if not run_file(options.run, None).exists():
        raise KitError(f"There is no run {options.run!r}: `python -m rpo_kit mine FILE --run {options.run}` makes one.")
    run = existing_run(options.run)
    if options.file != "-" and not Path(options.file).is_file():
        raise KitError(f"There is no file {options.file}: correct the path, or give - and pipe the draft in.")
    data = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
    draft = OwnVoice.of(run, base=options.base).rewrite(decoded(data)[0])
    print(
        f"-- the base model alone --\n{draft.generic}\n\n-- in your voice --\n{draft.text}"
        if options.generic
        else draft.text
    )
    for number, passage in enumerate(draft.passages, 1):
        if why := why_left(passage):
            print(f"passage {number} is left as it was: {why}", file=sys.stderr)


def _forget(options: argparse.Namespace) -> None:
    from rpo_kit.study.forget import forget

    forget(options.name, options.yes)
