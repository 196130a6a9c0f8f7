"""README and docs stay true: tables, links, commands, settings, snippets and the numbers of stored runs."""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from rpo_kit.__main__ import main
from rpo_kit.pipeline import STAGES
from rpo_kit.presets import PRESETS, RETIRED, as_dict, get_preset, teacher_of
from rpo_kit.rewriting import personalizer
from rpo_kit.rewriting.reflection import load_reflection
from rpo_kit.runs import Run
from rpo_kit.study import comparisons
from rpo_kit.study.component_figure import resolved
from rpo_kit.study.results import reads_other_k

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("figures/*.md"))
)
OTHER_LIBRARIES = ("inspect_ai", "langchain_openai", "litellm", "lm_eval")  # of the extras `interop` and `harness`
WORDS, TABLE_ROWS = 1200, 35  # of the README: five minutes to read
GROUPS = [name for name, value in as_dict(PRESETS["cpu"]).items() if isinstance(value, dict)]
DATA = ROOT / "figures" / "data"

every_page = pytest.mark.parametrize("page", PAGES)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE)


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)


def code(page: str) -> list[str]:
    """Shell lines in code blocks, with continuation lines joined, and inline code."""
    lines = []
    for block in (*blocks(page, "bash"), *re.findall(r"(?:^ {4}.+\n)+", prose(page), re.MULTILINE)):
        lines += re.sub(r"\\\n", " ", block).splitlines()
    return [*lines, *re.findall(r"`([^`\n]+)`", prose(page))]


def tables(page: str) -> list[list[str]]:
    """Each table as its lines."""
    found: list[list[str]] = []
    inside = False
    for line in prose(page).splitlines():
        if line.startswith("|"):
            found = found if inside else [*found, []]
            found[-1].append(line)
        inside = line.startswith("|")
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def rows(page: str, header: str) -> dict[str, list[str]]:
    """{first cell: other cells} of the one table whose header begins with `header`."""
    (table,) = [lines for lines in tables(page) if lines[0].startswith(header)]
    return {first: rest for first, *rest in map(cells, table[2:])}


# ---- form ---------------------------------------------------------------------------------------------------------


@every_page
def test_every_table_row_has_as_many_cells_as_its_header(page: str) -> None:
    for table in tables(page):
        assert re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", table[1]), table[:2]
        for line in table:
            assert line.endswith("|"), line
            assert len(cells(line)) == len(cells(table[0])), line


def test_the_readme_can_be_read_in_five_minutes() -> None:
    seen = re.sub(r"!\[[^\]]*\]", "", read("README.md"))  # without the words for those who do not see the pictures
    assert len(seen.split()) <= WORDS
    assert sum(line.startswith("|") for line in read("README.md").splitlines()) <= TABLE_ROWS


def anchors(page: str) -> set[str]:
    """The anchors that a host makes from the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(ROOT).as_posix()), target


@every_page
def test_no_page_contains_a_path_of_one_machine(page: str) -> None:
    assert not re.search(r"(?<![\w.~/])/(?:home|root|work|tmp|Users)/", read(page))


# ---- commands and settings ----------------------------------------------------------------------------------------


class ParsedError(Exception):
    """Raised in place of running a command; holds what was parsed."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], argparse.Namespace]:
    """Parse a command line of the kit without running it."""
    original = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *arguments: Any, **named: Any) -> Any:
        raise ParsedError(original(self, *arguments, **named))

    def parsed(arguments: list[str]) -> argparse.Namespace:
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            with pytest.raises(ParsedError) as info:
                main(arguments)
        options = info.value.args[0]
        assert isinstance(options, argparse.Namespace)
        return options

    return parsed


def kit_commands(page: str) -> Iterator[list[str]]:
    """The arguments of every `python -m rpo_kit …` on a page; placeholders such as `--set base=…` stay as they are."""
    text = "\n".join(code(page)) + "\n" + "\n".join(re.sub(r"\\?\n\s+", " ", b) for b in blocks(page, "bash"))
    for command in re.findall(r"python -m rpo_kit (.+)", text):
        if not command.startswith("…") and command.count("'") % 2 == 0:
            yield shlex.split(command, comments=True)
    for arguments in re.findall(r'make demo RPO_ARGS="([^"]+)"', text):
        yield ["demo", *shlex.split(arguments)]


@every_page
def test_every_command_of_the_kit_parses(page: str, parse: Callable[[list[str]], argparse.Namespace]) -> None:
    for arguments in kit_commands(page):
        if "--help" not in arguments:
            assert callable(parse(arguments).command), arguments


def test_the_readme_names_commands() -> None:
    assert [arguments[0] for arguments in kit_commands("README.md")].count("demo") >= 1
    assert ["serve", "--run", "demo"] in list(kit_commands("README.md"))


@every_page
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"(?:^|&& )make ([a-z-]+)", "\n".join(code(page)), re.MULTILINE))
    environment = {"PATH": os.environ["PATH"]}
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, env=environment, capture_output=True, check=True)


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"rl": {"steps": 3}} as {"rl.steps": 3}."""
    result: dict[str, Any] = {}
    for key, value in node.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


@every_page
def test_every_setting_that_is_named_exists(page: str) -> None:
    known = set(flat(as_dict(PRESETS["cpu"]))) | set(RETIRED)  # the changelog names them
    text = "\n".join([*code(page), *re.findall(r"--set[^`]*", read(page))])
    named = set(re.findall(r"--set '?([\w.]+)=", text))
    files = r"(?!py\b|json\b|jsonl\b|csv\b|md\b|bin\b)"
    named |= set(re.findall(rf"(?<![\w./-])((?:{'|'.join(GROUPS)})\.{files}[a-z]\w*)(?![\w(.])", "\n".join(code(page))))
    assert named <= known, named - known


def test_the_settings_page_is_up_to_date() -> None:
    """If this fails: python scripts/settings_table.py --write."""
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "scripts" / "settings_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert read("docs/settings.md") == module.page()
    named = re.findall(r"^\| `([\w.]+)` \|", read("docs/settings.md").partition("## What each")[0], re.MULTILINE)
    assert named == [key for key in flat(as_dict(PRESETS["cpu"])) if key not in ("name", "about")]


def test_the_stages_of_the_readme_are_those_of_the_pipeline() -> None:
    table = rows("README.md", "| notebook")
    named = {command.strip("`"): link for link, (command, *_) in table.items()}
    assert list(named) == ["doctor", *STAGES, ""], "the last notebook has no command"
    for stage in STAGES.values():
        assert f"notebooks/{stage.notebook}.ipynb" in named[stage.name]
        assert table[named[stage.name]][-1] == f"`{stage.name}/`"


def test_the_readme_lists_all_presets() -> None:
    table = rows("README.md", "| preset")
    assert [name.strip("`") for name in table] == list(PRESETS)
    for name, (_, module, teacher) in zip(PRESETS, table.values(), strict=True):
        preset = PRESETS[name]
        assert ("4-bit" in module) == preset.reflection.load_in_4bit
        assert (teacher == "rule-based") == (preset.synthesis.teacher == "rules")
        assert preset.base == f"local:{preset.reflection.name}"


# ---- snippets -----------------------------------------------------------------------------------------------------


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


@every_page
def test_every_python_snippet_compiles_and_its_imports_resolve(page: str) -> None:
    for snippet in blocks(page, "python"):
        tree = ast.parse(snippet)
        for module, name in imported(tree):
            if importlib.util.find_spec(module.split(".")[0]) or module.split(".")[0] not in OTHER_LIBRARIES:
                assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_the_snippet_of_the_readme_runs_as_written(
    trained: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The fixture's adapters are empty: the model stays untrained, so the generic answer is used.
    run = trained({"data.task": "LaMP-7"}, name="demo")
    monkeypatch.setenv("RPO_RUNS", str(run.folder.parent))
    monkeypatch.setattr(personalizer, "load_reflection", lambda settings, adapter: load_reflection(settings))
    (snippet,) = blocks("README.md", "python")
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["rewrite"].generic
    assert len(names["rewrite"].items) == len(names["profile"])
    assert names["rewrite"].text in capsys.readouterr().out


# ---- what CONTRIBUTING and CHANGELOG refer to ---------------------------------------------------------------------


def defined(path: Path) -> set[str]:
    """Functions, classes, methods and constants of a module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_every_sentence_of_the_abstract_leads_to_code_that_exists() -> None:
    table = rows("CONTRIBUTING.md", "| #")
    assert list(table) == [str(number) for number in range(1, len(table) + 1)]
    for _, where in table.values():
        pointers = re.findall(r"`(\w+)` in \[[^\]]+\]\(([^)]+)\)|`(\w+)` in \[", where)
        links = re.findall(r"\]\((rpo_kit/[^)]+)\)", where)
        assert links, where
        for name, path, _ in pointers:
            assert name in defined(ROOT / path), f"{name} in {path}"


def kit_module(name: str) -> Any:
    return importlib.import_module(f"rpo_kit.{name}")


def test_every_new_module_of_the_changelog_exists_and_contains_what_moved_there() -> None:
    for old, (new,) in rows("CHANGELOG.md", "| old module").items():
        module = kit_module(new.strip("`"))
        for name in re.findall(r"`(\w+)`", old.partition("(")[2]):
            assert hasattr(module, name), (new, name)


def test_every_new_name_of_the_changelog_exists() -> None:
    for old, (new,) in rows("CHANGELOG.md", "| old |").items():
        names = re.findall(r"`([\w.]+)`", new)
        assert len(names) in (1, len(re.findall(r"`[\w.]+`", old)))
        for dotted in names:
            module, _, name = dotted.rpartition(".")
            assert hasattr(kit_module(module), name), dotted


def test_the_map_names_exactly_the_rooms() -> None:
    folders = {path.parent.name for path in (ROOT / "rpo_kit").glob("*/__init__.py")}
    named = re.findall(r"`rpo_kit/(\w+)/`", "\n".join(rows("CONTRIBUTING.md", "| room")))
    assert set(named) == folders


# ---- numbers ------------------------------------------------------------------------------------------------------

LABELS = {
    "base model": "base",
    "query, unchanged": "echo",
    "first words of the query": "lead",
    "one label for everybody": "constant",
    "best-ranked item, copied": "copy-nearest",
    "majority label of the user": "majority",
    "context injection: 6 items in the base model's prompt": "context",
    "context injection, 6 items": "context",
    "context injection, k = 6": "context",
    **{f"context injection, k = {k}": f"context-{k}" for k in (1, 2, 4)},
    **{f"profile summary (PAG), k = {k}": f"pag-{k}" for k in (0, 1)},
    "reflection module, untrained": "untrained",
    "reflection module after SFT": "sft",
    "reflection module after SFT + RL": "rl",
    "*reference:* perfect reader who does not know the user": "best guess",
    "*reference:* perfect reader of the same 6 items (oracle)": "oracle",
}


def stored(name: str, key: str) -> dict[str, dict[str, str]]:
    with (DATA / f"{name}.csv").open(encoding="utf-8") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def shown(cell: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"[+−-]?\d+\.\d+", cell)]


def agree(cell: str, row: dict[str, str], *columns: str) -> None:
    """The numbers in a cell are those of the CSV, rounded to three digits."""
    expected = [float(row[column]) for column in columns]
    assert shown(cell) == pytest.approx(expected, abs=0.00051), (cell, expected)


def test_the_result_table_of_the_readme_is_the_stored_demo() -> None:
    numbers, table = stored("demo_LaMP-7_metrics", "system"), rows("README.md", "| system")
    assert [LABELS[label] for label in table] == [name for name in numbers if not reads_other_k(name)]
    for label, (score, interval, rouge_1, rouge_l, unparsed) in table.items():
        row = numbers[LABELS[label]]
        agree(score, row, "score")
        agree(interval, row, "low", "high")
        if row["rouge-1"]:
            agree(rouge_1, row, "rouge-1")
            agree(rouge_l, row, "rouge-L")
            assert unparsed == f"{float(row['unparsed']):.0%}"


def test_the_baselines_of_the_results_are_the_stored_ones() -> None:
    numbers = stored("baselines_LaMP-7_metrics", "system")
    with (DATA / "baselines_LaMP-7_paired.csv").open(encoding="utf-8") as file:
        pairs = {row["minus"]: row for row in csv.DictReader(file) if row["system"] == "rl"}
    table = rows("docs/results.md", "| system | score | 95")
    assert [LABELS[label] for label in table] == list(numbers)
    for label, (score, interval, difference) in table.items():
        agree(score, numbers[LABELS[label]], "score")
        agree(interval, numbers[LABELS[label]], "low", "high")
        if LABELS[label] in pairs:
            agree(difference, pairs[LABELS[label]], "score", "low", "high")


def test_the_longer_runs_of_the_results_are_the_stored_ones() -> None:
    first, third = (stored(f"long_LaMP-{number}_metrics", "system") for number in (1, 3))
    table = rows("docs/results.md", "| system | LaMP-1")
    assert {LABELS[label] for label in table} == set(first) | set(third)
    for label, (accuracy, interval_1, score, interval_3, mae) in table.items():
        system = LABELS[label]
        if system in first:
            agree(accuracy, first[system], "score")
            agree(interval_1, first[system], "low", "high")
        agree(score, third[system], "score")
        agree(interval_3, third[system], "low", "high")
        if third[system]["MAE"]:
            agree(mae, third[system], "MAE")


def test_the_gains_by_rl_steps_are_the_stored_ones() -> None:
    table = rows("docs/results.md", "| RL |")
    names = {"20 steps of 6 × 8": "20x6", "24 steps of 16 × 8": "24x16"}
    names |= {f"{n} steps of 16 × 8 at 1e-4, SFT on 1, 3 and 6 items": f"five_{n}x16" for n in (6, 12, 24)}
    for label, name in names.items():
        seeds, gain, could_show, _ = table[label]
        numbers = stored(f"gain_LaMP-7_{name}", "run")
        count = 5 if seeds == "0 to 4" else len(seeds.split(","))
        assert len(numbers) == 1 + count
        agree(gain, numbers["all"], "difference", "low", "high")
        agree(could_show, numbers["all"], "mde")


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("curriculum", "h100_LaMP-7"),
        ("curriculum, LaMP-3", "arms_LaMP-3"),
        ("curriculum, LaMP-3 without fixed-4", "four_LaMP-3"),
    ],
)
def test_the_figures_on_600_users_are_the_stored_ones(heading: str, name: str) -> None:
    table = rows("docs/results.md", f"| {heading} | *k* = 1")
    bars, differences = (pd.read_csv(DATA / f"{name}_{file}.csv") for file in ("bars", "differences"))
    differences["resolved"] = comparisons.resolved(differences)
    with_six = differences[differences["shots"] == 6].set_index(["arm", "minus"])
    assert len(table) == (5 if name.startswith("four") else 6)
    for arm, (one, two, four, six, gain, behind, *items) in table.items():
        scores = bars[bars["arm"] == arm].set_index("shots")["score"]
        assert [float(score) for score in (one, two, four, six)] == pytest.approx(list(scores[[1, 2, 4, 6]]), abs=6e-4)
        pairs = [(gain, (arm, "SFT only")), (behind, ("progressive", arm)), *((cell, (arm, "k = 1")) for cell in items)]
        for cell, pair in pairs:
            if cell != "–":
                assert shown(cell) == pytest.approx(list(with_six.loc[pair, ["score", "low", "high"]]), abs=0.0006)
                assert cell.startswith("*") != with_six.loc[pair, "resolved"], (arm, cell)


def test_the_scores_by_items_are_the_stored_ones() -> None:
    table = rows("docs/results.md", "| trained by | *k* = 1")
    runs = {"SFT on 1 item (paper)": ("items1", "sft"), "SFT on 1, 2 and 3 items": ("items123", "sft")}
    runs |= {
        "SFT on 1, 2 and 3 items + RL": ("items123", "rl"),
        "SFT on 1, 3 and 6 items (default)": ("items136", "sft"),
    }
    assert [label for label in table if not label.startswith("*reference")] == list(runs)
    for label, (name, stage) in runs.items():
        *scores, gain, faithful, many, majority = table[label]
        numbers = stored(f"{name}_LaMP-7_metrics", "system")
        for cell, system in zip(scores, (f"{stage}-1", f"{stage}-2", f"{stage}-4", stage), strict=True):
            agree(cell, numbers[system], "score")
        for cell, column in ((faithful, "faithful"), (many, "cites_many"), (majority, "majority")):
            assert shown(cell) == pytest.approx([float(numbers[stage][column])], abs=0.0051)
        with (DATA / f"{name}_LaMP-7_paired.csv").open(encoding="utf-8") as file:
            (pair,) = [r for r in csv.DictReader(file) if (r["system"], r["minus"]) == (stage, f"{stage}-1")]
        agree(gain, pair, "score", "low", "high", "mde")


@pytest.mark.parametrize(
    ("header", "study"),
    [("| part changed |", "components_LaMP-7"), ("| part changed, 180 SFT steps |", "components_LaMP-7-180")],
)
def test_a_component_study_of_the_results_is_the_stored_one(header: str, study: str) -> None:
    table, numbers = rows("docs/results.md", header), stored(study, "name")
    told_apart = dict(zip(numbers, resolved(pd.read_csv(DATA / f"{study}.csv")), strict=True))
    assert list(table) == list(numbers)
    for name, (score, interval, difference, mde, is_resolved) in table.items():
        agree(score, numbers[name], "score")
        agree(interval, numbers[name], "low", "high")
        if name != "full method":
            agree(difference, numbers[name], "difference", "difference_low", "difference_high")
            agree(mde, numbers[name], "mde")
            assert is_resolved == ("yes" if told_apart[name] else "no"), name


def test_the_real_users_of_the_results_are_the_stored_ones() -> None:
    boxes = ("recorded", "bundled")
    metrics = [stored(f"real-{box}_LaMP-7_metrics", "system") for box in boxes]
    for label, cells in rows("docs/results.md", "| system | recorded black box").items():
        for cell, numbers in zip(cells, metrics, strict=True):
            if cell != "–":
                agree(cell, numbers[LABELS[label]], "score", "low", "high")
    pairs = [pd.read_csv(DATA / f"real-{box}_LaMP-7_paired.csv").set_index(["system", "minus"]) for box in boxes]
    short = {"SFT + RL": "rl", "SFT": "sft", "base model": "base", "query, unchanged (best trivial baseline)": "echo"}
    for label, cells in rows("docs/results.md", "| difference (95 % interval), MDE").items():
        pair = tuple(short[part] for part in label.split(" minus "))
        for cell, numbers in zip(cells, pairs, strict=True):
            assert shown(cell) == pytest.approx(list(numbers.loc[pair, ["score", "low", "high", "mde"]]), abs=6e-4)
    readers = stored("room_LaMP-7_recorded", "reader")
    for label, (score,) in rows("docs/results.md", "| reader | score").items():
        agree(score, readers["better of the two" if label.startswith("better") else label], "score")
    by_run = pd.read_csv(DATA / "room_LaMP-7_recorded_observations.csv")
    said = by_run.groupby(["system", "fact"]).mean(numeric_only=True)
    by_seed = by_run.sort_values("run").groupby(["system", "fact"])["difference"]
    for fact, cells in rows("docs/results.md", "| an observation says of").items():
        for system, (true, of_another, differ) in (("sft", cells[:3]), ("rl", cells[3:])):
            means = list(said.loc[(system, fact), ["true", "of_another_user"]])
            assert [float(true), float(of_another)] == pytest.approx(means, abs=0.0051)
            assert shown(differ) == pytest.approx(list(by_seed.get_group((system, fact))), abs=0.0051)


def test_figure_3_of_the_results_is_the_stored_sweep() -> None:
    bars = stored("long_LaMP-7_bars", "arm")
    with (DATA / "long_LaMP-7_differences.csv").open(encoding="utf-8") as file:
        differences = {(row["arm"], row["minus"]): row for row in csv.DictReader(file)}
    table = rows("docs/results.md", "| arm")
    assert list(table) == [arm for arm in bars if arm not in ("best trivial", "best guess", "oracle")]
    for arm, (score, interval, gain, progressive) in table.items():
        agree(score, bars[arm], "score")
        agree(interval, bars[arm], "low", "high")
        for cell, pair in ((gain, (arm, "SFT only")), (progressive, ("progressive", arm))):
            if pair in differences:
                agree(cell, differences[pair], "score", "low", "high")


@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("l1", "long_LaMP-1_run.json"),
        ("l3", "long_LaMP-3_run.json"),
        ("s1", "seeds_LaMP-1_provenance.json"),
        ("f7", "long_LaMP-7_provenance.json"),
        ("b7", "baselines_LaMP-7_run.json"),
        ("g7", "gain1_LaMP-7_run.json"),
        ("items123", "items123_LaMP-7_run.json"),
        ("a3", "arms_LaMP-3_provenance.json"),
        ("c7", "components_LaMP-7.json"),
        ("c7-180", "components_LaMP-7-180.json"),
    ],
)
def test_the_command_of_a_longer_run_gives_its_stored_settings(
    run: str, file: str, parse: Callable[[list[str]], argparse.Namespace]
) -> None:
    """Settings that did not exist at the time have today's defaults."""
    commands = [shlex.split(block.replace("\\\n", " "))[3:] for block in blocks("docs/results.md", "bash")]
    (options,) = [parse(command) for command in commands if command[command.index("--run") + 1] == run]
    changes = dict(pair.partition("=")[::2] for pair in options.set) | (
        {"data.task": options.task} if options.task else {}
    )
    preset = get_preset(options.preset or "cpu", changes)
    repeated = flat(as_dict(preset))
    then = flat(json.loads((DATA / file).read_text(encoding="utf-8"))["preset"])
    if then["synthesis.teacher"] != repeated["synthesis.teacher"]:  # a run may name its rules
        repeated["synthesis.teacher"] = teacher_of(preset)
    if isinstance(then["synthesis.shots"], int):  # a list of one today
        then["synthesis.shots"] = [then["synthesis.shots"]]
    known = [key for key in then if key in repeated and key not in ("name", "about")]
    assert {key: repeated[key] for key in known} == {key: then[key] for key in known}


# ---- other files --------------------------------------------------------------------------------------------------


def test_the_citation_file_has_what_the_format_requires() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert (str(citation["version"]), citation["license"]) == (project["version"], project["license"])
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper)
    assert " ".join(paper["title"].split()) in " ".join(read("README.md").split())
    for author in paper["authors"]:
        assert f"{author['given-names']} {author['family-names']}" in " ".join(read("README.md").split())


def test_ci_on_a_public_host_runs_the_same_script_on_every_supported_python() -> None:
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert tomllib.loads(read("pyproject.toml"))["project"]["requires-python"] == ">=3.11,<3.14"
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert not re.search(r"(?<![\w.~/])/(?:home|root|work|tmp)/", read(".github/workflows/ci.yml"))


def test_the_pre_commit_hooks_are_the_pinned_tools_of_the_environment() -> None:
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff", "ruff-format", "nbstripout"]
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert (Path(sys.executable).parent / Path(hook["entry"].split()[0]).name).exists()
