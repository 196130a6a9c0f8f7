"""The command line: each stage of the method, the whole demo, and a few tools.

python -m rpo_kit demo --preset cpu          all stages, by executing the notebooks
python -m rpo_kit rl --run mine --set rl.steps=40
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.pipeline import STAGES, cell_functions, refuse, stage_function
from rpo_kit.presets import PRESETS, flat
from rpo_kit.runs import Run, check_exists, existing_run, open_run, planned_run, runs_root
from rpo_kit.serving.commands import add_serving
from rpo_kit.setting_values import from_options
from rpo_kit.stages import require
from rpo_kit.study.mine_command import add_own_voice

DEFAULT_RUN = "demo"
FIGURES = Path(__file__).resolve().parents[1] / "figures"  # with the numbers kept in figures/data


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a KitError is printed as one sentence."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
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
        description="Reflective Personalization Optimization: personalise a black-box model by rewriting its answers.",
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
    _add_result_commands(commands)
    add_own_voice(commands)
    return parser


def _add_result_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands that use the results of a run."""
    about = "print LaMP's metrics for an evaluated run, or for a prediction file in LaMP's format"
    score = commands.add_parser("score", help=about, description=about)
    score.add_argument("golds", type=Path, nargs="?", help="file with the golds ({split}_outputs.json)")
    score.add_argument("predictions", type=Path, nargs="?", help="file with the predictions, same format")
    score.add_argument("--run", help="instead of two files: score the systems of this run on its dev split")
    score.set_defaults(command=_score)
    figure = commands.add_parser("figure3", help="draw Figure 3 from the stored numbers of a sweep, without training")
    figure.add_argument("--run", default=DEFAULT_RUN, help="the run with the sweep (default: demo)")
    figure.add_argument(
        "--data", metavar="NAME", help="instead of a run: the numbers stored as figures/data/NAME_*.csv"
    )
    figure.add_argument("--export", metavar="NAME", help="also store the numbers as figures/data/NAME_*.csv")
    figure.set_defaults(command=_figure3)
    results = commands.add_parser("results", help="print and draw an evaluation from its stored numbers")
    results.add_argument("--run", default=DEFAULT_RUN, help="the evaluated run (default: demo)")
    results.add_argument("--export", metavar="NAME", help="also store numbers and logs as figures/data/NAME_*.csv")
    about = "print and draw the component study (sweep --grid components) instead of the evaluation"
    results.add_argument("--components", action="store_true", help=about)
    about = "also print, apart from the run's table, what others have published on the task"
    results.add_argument("--published", action="store_true", help=about)
    results.set_defaults(command=_results)
    _add_plan(commands)
    add_serving(commands)


def _add_fork(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "start a new run from an old one with changed settings, and keep the finished stages that are still valid"
    forked = commands.add_parser("fork", help=about, description=about)
    forked.add_argument("name", metavar="NEW", help="name of the new run")
    forked.add_argument("--run", default=DEFAULT_RUN, metavar="OLD", help="the run to start from (default: demo)")
    forked.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, as in rl.steps=40"
    )
    forked.set_defaults(command=_fork, task=None, data=None)


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "estimate from a pilot run how many users, seeds and hours it takes to detect a difference"
    plan = commands.add_parser("plan", help=about, description=about)
    plan.add_argument(
        "--run", default=DEFAULT_RUN, help="the pilot: a run with an evaluation or a sweep (default: demo)"
    )
    plan.add_argument("--difference", type=float, default=0.02, help="difference in score to detect (default: 0.02)")
    plan.add_argument("--power", type=float, default=0.8, help="the chance of finding it (default: 0.8)")
    about = "what of the pilot is read (default: evaluate, where seeds are one; a sweep may have several)"
    plan.add_argument("--from", dest="source", choices=("evaluate", "sweep"), default="evaluate", help=about)
    plan.add_argument("--system", help="a system or arm of the pilot (default: rl, or progressive)")
    plan.add_argument("--minus", help="what is subtracted from it (default: sft, or SFT only)")
    about = "standard deviation between seeds, as in 0.05, or stored numbers, as in gain_LaMP-7_24x16"
    plan.add_argument("--seed-spread", metavar="SD", help=about)
    plan.set_defaults(command=_plan)


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
    changed = {key: value for key, value in flat(run.preset).items() if value != of_preset[key]}
    print(f"run {run.name!r}: preset {run.preset.name}, {len(changed) or 'no'} settings changed")
    for key, value in changed.items():
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


def _score(options: argparse.Namespace) -> None:
    if bool(options.run) == bool(options.golds) or bool(options.golds) != bool(options.predictions):
        raise KitError("score takes either --run NAME, or two files: GOLDS ({split}_outputs.json) and PREDICTIONS.")
    from rpo_kit.study.score_report import report_of_files, report_of_run

    if options.run:
        print(report_of_run(existing_run(options.run)))
    else:
        print(report_of_files(options.golds, options.predictions))


def _figure3(options: argparse.Namespace) -> None:
    from rpo_kit.study.ablation import export_figure_data
    from rpo_kit.study.comparisons import stored_differences
    from rpo_kit.study.figures import figure3, save

    name = options.data or options.export
    stored = sorted(path.name.removesuffix("_bars.csv") for path in (FIGURES / "data").glob("*_bars.csv"))
    if options.data and options.export:
        raise KitError("--data draws stored numbers and --export stores those of a run: give one of the two.")
    if options.data and name not in stored:
        raise KitError(f"No numbers are stored as {name!r}: --data takes one of {', '.join(stored)}.")
    if not options.data:
        run = existing_run(options.run)
        if options.export:
            export_figure_data(run, FIGURES / "data", name)
    prefix, folder = (f"{FIGURES}/data/{name}_", FIGURES) if name else (f"{run.stage('sweep')}/", run.stage("sweep"))
    drawn = save(figure3(prefix), folder, f"{name}_figure3" if name else "figure3")
    print(*filter(None, [stored_differences(prefix)]), f"drawn: {' '.join(map(str, drawn))}", sep="\n")


def _components(run: Run, name: str | None) -> None:
    from rpo_kit.study.comparisons import UNRESOLVED
    from rpo_kit.study.component_figure import components_figure, export, read_table, resolved
    from rpo_kit.study.figures import save

    table = read_table(str(run.stage("components") / "components"))
    verdict = ["" if is_resolved else UNRESOLVED for is_resolved in resolved(table)]
    if name:
        export(run, FIGURES / "data", name)
    print(table.drop(columns="system").round(3).assign(verdict=verdict).to_string(index=False, na_rep=""))
    folder, file = (FIGURES, f"components_{name}") if name else (run.folder / "figures", "components")
    print("drawn:", *save(components_figure(table), folder, file))


def _results(options: argparse.Namespace) -> None:
    from rpo_kit.study.ablation import export_results
    from rpo_kit.study.comparisons import differences_text
    from rpo_kit.study.figures import results_figure, save
    from rpo_kit.study.history import history_figure, history_table
    from rpo_kit.study.results import named, read_tables, result_text

    run = existing_run(options.run)
    if options.components:
        _components(run, options.export)
        return
    if options.export:
        export_results(run, FIGURES / "data", options.export)
    metrics, paired = read_tables(f"{require(run, 'evaluate')}/")
    print(*filter(None, [result_text(metrics, paired), differences_text(named(paired))]), sep="\n\n")
    folder, prefix = (FIGURES, f"{options.export}_") if options.export else (run.folder / "figures", "")
    figures = {"results": results_figure(metrics)}
    if len(history_table(metrics)):
        figures["history"] = history_figure(metrics)
    print("drawn:", *[path for name, figure in figures.items() for path in save(figure, folder, f"{prefix}{name}")])
    if options.published:
        _print_published(run)


def _plan(options: argparse.Namespace) -> None:
    from rpo_kit.study.pilot import pilot_of_evaluation, pilot_of_sweep
    from rpo_kit.study.power import plan_report, seed_spread_of

    run, stated = existing_run(options.run), options.seed_spread
    read = pilot_of_evaluation if options.source == "evaluate" else pilot_of_sweep
    seed_spread = None if stated is None else seed_spread_of(stated, FIGURES / "data")
    print(plan_report(read(run, options.system, options.minus), options.difference, options.power, seed_spread))


def _print_published(run: Run) -> None:
    from rpo_kit.study.published import published_report

    print(f"\n{'-' * 100}\n{published_report(run.preset.data.task)}")
    if run.preset.data.source == "personas":
        print("\nThis run's users are invented (embedded benchmark), so its numbers are not numbers on LaMP.")


if __name__ == "__main__":
    sys.exit(main())
