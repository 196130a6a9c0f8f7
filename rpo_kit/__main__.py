"""The command line: each stage of the method, the whole demo, and a few tools.

python -m rpo_kit demo --preset cpu          all stages, by executing the notebooks
python -m rpo_kit rl --run mine --set rl.steps=40
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.pipeline import STAGES, cell_functions, refuse, stage_function
from rpo_kit.presets import PRESETS, changed, flat
from rpo_kit.runs import DEFAULT_RUN, Run, check_exists, existing_run, open_run, planned_run, runs_root
from rpo_kit.serving.commands import add_serving
from rpo_kit.setting_values import from_options
from rpo_kit.study.mine_command import add_own_voice
from rpo_kit.study.result_commands import add_results


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a KitError is printed as one sentence."""
    options = _parser().parse_args(arguments)
    try:
        code = int(options.command(options) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has left, as in "… | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KitError as error:
        print(f"rpo_kit: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("rpo_kit"):
            raise
        print(
            f"rpo_kit: {sys.executable} lacks the package {error.name}. After `make install` use .venv/bin/python, or "
            "`source .venv/bin/activate` once per terminal.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("\nrpo_kit: interrupted; run the same command again to resume.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rpo_kit",
        description="Reflective Personalization Optimization: personalize a black-box model by rewriting its answers.",
        epilog="Start with: python -m rpo_kit demo. Run an interrupted command again to resume it.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for number, stage in enumerate(STAGES.values(), 1):
        command = commands.add_parser(stage.name, help=f"{number}. {stage.about}", description=stage.about)
        _add_run_options(command).set_defaults(command=_stage, stage=stage.name)
        if stage.name == "sweep":
            about = "what to compare: shots (Figure 3, the default), or components, which is the stage of that name"
            command.add_argument("--grid", choices=("shots", "components"), default="shots", help=about)
            about = "compute this cell alone, as a scheduler's job does, and no table (docs/scale.md)"
            command.add_argument("--only", metavar="CELL", help=about)
            command.add_argument("--cells", action="store_true", help="print the names of the cells, compute nothing")
    about = "show how a run's settings differ from its preset, or take changes back"
    settings = commands.add_parser("settings", help=about, description=about)
    settings.add_argument("--run", default=DEFAULT_RUN, help="the run (default: demo)")
    settings.add_argument(
        "--unset", action="append", default=[], metavar="KEY", help="set this key back to the preset's value"
    )
    settings.set_defaults(command=_settings)
    _add_fork(commands)
    about = "all stages, by executing the notebooks; ends with the result table"
    _add_run_options(commands.add_parser("demo", help=about, description=about)).set_defaults(command=_demo)
    doctor = commands.add_parser("doctor", help="check this machine and the installation; say how to fix what is wrong")
    doctor.set_defaults(command=_doctor)
    presets = commands.add_parser("presets", help="list the presets and what they are for")
    presets.set_defaults(command=_presets)
    add_results(commands)
    add_serving(commands)
    add_own_voice(commands)
    return parser


def _add_fork(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "start a new run from an old one with changed settings, and keep the finished stages that are still valid"
    forked = commands.add_parser("fork", help=about, description=about)
    forked.add_argument("name", metavar="NEW", help="name of the new run")
    forked.add_argument("--run", default=DEFAULT_RUN, metavar="OLD", help="the run to start from (default: demo)")
    forked.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, as in rl.steps=40"
    )
    forked.set_defaults(command=_fork, task=None, data=None)


def _add_run_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--run", help=f"name of the run folder in {runs_root()} (default: {DEFAULT_RUN})")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="all settings at once (a new run takes cpu)")
    parser.add_argument("--task", help="LaMP-1, LaMP-2, LaMP-2-news, LaMP-3 to LaMP-7 (a new run takes LaMP-7)")
    parser.add_argument("--data", help="personas, official (downloads LaMP's files), or a folder with them")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, as in rl.steps=40"
    )
    return parser


def open_from(options: argparse.Namespace) -> Run:
    """The run that the options name: new, or reopened with its stored settings and the changes among the options."""
    return open_run(options.run or DEFAULT_RUN, options.preset, _overrides(options))


def planned_from(options: argparse.Namespace) -> Run:
    """The same with nothing stored."""
    return planned_run(options.run or DEFAULT_RUN, options.preset, _overrides(options))


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    overrides = from_options(options.set)
    overrides |= {key: value for key, value in (("data.task", options.task), ("data.source", options.data)) if value}
    if "data.task" in overrides:
        get_task(overrides["data.task"])  # reject an unknown task before a run is created
    return overrides


def _stage(options: argparse.Namespace) -> None:
    grid = vars(options).get("grid")
    if grid == "components":
        options.stage = "components"
    if grid and options.cells:
        _print_cells(options)
        return
    is_first = options.stage == "prepare"
    if not is_first:
        check_exists(options.run or DEFAULT_RUN)
    refuse(planned_from(options), options.stage)  # before settings are stored
    with _no_empty_run(options):
        run = open_from(options)
        if grid and options.only:
            _, compute_cell = cell_functions()
            compute_cell(run, grid, options.only)
        else:
            stage_function(options.stage)(run)


def _print_cells(options: argparse.Namespace) -> None:
    check_exists(options.run or DEFAULT_RUN)
    cells, _ = cell_functions()
    print(*cells(planned_from(options).preset, options.grid), sep="\n")


@contextmanager
def _no_empty_run(options: argparse.Namespace) -> Iterator[None]:
    """Remove a run that this command created if the command fails before any work is stored."""
    folder = runs_root() / (options.run or DEFAULT_RUN)
    is_new = not folder.exists()
    try:
        yield
    except KitError:
        files = {path.name for path in folder.rglob("*") if path.is_file() and path.parent.name != ".locks"}
        if is_new and files <= {"run.json", "started.json"}:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _settings(options: argparse.Namespace) -> None:
    run = existing_run(options.run)
    of_preset = flat(PRESETS[run.preset.name])
    unknown = [key for key in options.unset if key not in of_preset]
    if unknown:
        raise KitError(f"There is no setting {unknown[0]!r} to unset; write it in full, as in rl.steps.")
    if options.unset:
        run = open_run(run.name, None, {key: of_preset[key] for key in options.unset})
    differing = changed(run.preset)
    print(f"run {run.name!r}: preset {run.preset.name}, {len(differing) or 'no'} settings changed")
    for key, value in differing.items():
        print(f"  {key} = {json.dumps(value)}   (preset: {json.dumps(of_preset[key])})")


def _fork(options: argparse.Namespace) -> None:
    from rpo_kit.fork import fork

    fork(options.name, existing_run(options.run), _overrides(options))


def _demo(options: argparse.Namespace) -> None:
    from rpo_kit.study.demo import demo

    _check_not_replaced(options)
    refuse(planned_from(options))
    with _no_empty_run(options):
        demo(open_from(options))


def _check_not_replaced(options: argparse.Namespace) -> None:
    """Raise KitError if a demo without --run would replace the default run's results by those of other settings."""
    wanted = planned_from(options)
    results = any((wanted.stage(row.name) / row.marker).exists() for row in STAGES.values())
    if not options.run and results and wanted.preset != existing_run(DEFAULT_RUN).preset:
        raise KitError(
            f"The run {DEFAULT_RUN!r} holds results of other settings: name another run for this demo (--run NAME), or "
            f"add --run {DEFAULT_RUN} to compute that run's results again with these settings."
        )


def _doctor(options: argparse.Namespace) -> int:
    from rpo_kit import doctor

    return doctor.main()


def _presets(options: argparse.Namespace) -> None:
    for preset in PRESETS.values():
        print(f"{preset.name:10} {preset.about}")


if __name__ == "__main__":
    sys.exit(main())
