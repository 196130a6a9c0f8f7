"""The commands that show what came out: `score`, `figure3`, `results`, `transfer` and `plan`. Options only; the work is
imported when one is called.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.runs import DEFAULT_RUN, Run, existing_run, read_json
from rpo_kit.stages import require

FIGURES = Path(__file__).resolve().parents[2] / "figures"  # with the numbers kept in figures/data


def add_results(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    figure.add_argument(
        "--export", metavar="NAME", type=_stored_name, help="also store the numbers as figures/data/NAME_*.csv"
    )
    figure.set_defaults(command=_draw_figure3_again)
    results = commands.add_parser("results", help="print and draw an evaluation from its stored numbers")
    about = "the evaluated run (default: demo); several that differ in their seeds alone become one table"
    results.add_argument("--run", nargs="+", default=[DEFAULT_RUN], help=about)
    results.add_argument(
        "--export", metavar="NAME", type=_stored_name, help="also store numbers and logs as figures/data/NAME_*.csv"
    )
    about = "print and draw the component study (sweep --grid components) instead of the evaluation"
    results.add_argument("--components", action="store_true", help=about)
    about = "also print and draw, apart from the run's table, what others have published on the task"
    results.add_argument("--published", action="store_true", help=about)
    results.set_defaults(command=_results)
    _add_transfer(commands)
    _add_plan(commands)


def _add_transfer(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "let the module of one run rewrite the generic answers of another run, from a model it was not trained on"
    moved = commands.add_parser("transfer", help=about, description=about)
    about = "the run with the module; several, if they differ in their seeds alone"
    moved.add_argument("--from", dest="sources", metavar="RUN", nargs="+", required=True, help=about)
    about = "the evaluated run whose answers are rewritten, one for each --from"
    moved.add_argument("--to", dest="targets", metavar="RUN", nargs="+", required=True, help=about)
    about = "the module after SFT, after RL, or both (default: the last that is evaluated)"
    moved.add_argument("--module", nargs="+", choices=("sft", "rl"), default=[], help=about)
    moved.add_argument(
        "--export", metavar="NAME", type=_stored_name, help="also store the numbers as figures/data/NAME_transfer.csv"
    )
    moved.set_defaults(command=_transfer)


def _stored_name(text: str) -> str:
    if not re.fullmatch(r"[\w.=+-]+", text) or text.startswith("."):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a file name of letters, digits and . _ = + -, without a folder"
        )
    return text


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
    about = (
        "standard deviation of an adapter's score between seeds, as in 0.05, or stored numbers, as in gain_LaMP-7_24x16"
    )
    plan.add_argument("--seed-spread", metavar="SD", help=about)
    plan.set_defaults(command=_plan)


def _score(options: argparse.Namespace) -> None:
    if bool(options.run) == bool(options.golds) or bool(options.golds) != bool(options.predictions):
        raise KitError("score takes either --run NAME, or two files: GOLDS ({split}_outputs.json) and PREDICTIONS.")
    from rpo_kit.study.score_report import report_of_files, report_of_run

    if options.run:
        print(report_of_run(existing_run(options.run)))
    else:
        print(report_of_files(options.golds, options.predictions))


def _draw_figure3_again(options: argparse.Namespace) -> None:
    from rpo_kit.study.comparisons import stored_differences
    from rpo_kit.study.figures import figure3, save
    from rpo_kit.study.stored import read_table
    from rpo_kit.study.sweep_figure import unparsed_told
    from rpo_kit.study.sweep_tables import export_figure_data, finished_sweep

    name = options.data or options.export
    stored = sorted(path.name.removesuffix("_bars.csv") for path in (FIGURES / "data").glob("*_bars.csv"))
    if options.data and options.export:
        raise KitError("--data draws stored numbers and --export stores those of a run: give one of the two.")
    if options.data and name not in stored:
        raise KitError(f"No numbers are stored as {name!r}: --data takes one of {', '.join(stored)}.")
    if not options.data:
        run = existing_run(options.run)
        if options.export:
            _say_replaced(f"{name}_bars.csv")
            export_figure_data(run, FIGURES / "data", name)
    if name:
        prefix, folder = f"{FIGURES}/data/{name}_", FIGURES
    else:
        prefix, folder = f"{finished_sweep(run)}/", run.folder / "figures"
    drawn = save(figure3(prefix), folder, f"{name}_figure3" if name else "figure3")
    unparsed = unparsed_told(read_table(f"{prefix}bars.csv", ("shots",), ("arm",)))
    print(*filter(None, [stored_differences(prefix), unparsed]), f"drawn: {' '.join(map(str, drawn))}", sep="\n")


def _components(run: Run, name: str | None) -> None:
    from rpo_kit.study.comparisons import PLAN, RULE, UNRESOLVED, change_sentence
    from rpo_kit.study.component_figure import components_figure, export, gain_over_trivial, read_table, resolved
    from rpo_kit.study.figures import save

    table = read_table(str(run.stage("components") / "components"))
    verdict = ["" if is_resolved else UNRESOLVED for is_resolved in resolved(table)]
    if name:
        _say_replaced(f"components_{name}.csv")
        export(run, FIGURES / "data", name)
    told = change_sentence(read_json(run.stage("components") / PLAN))
    print(*filter(None, [gain_over_trivial(table), told]), sep="\n")
    print(f"{UNRESOLVED}: {RULE}")
    print(table.drop(columns="system").round(3).assign(verdict=verdict).to_string(index=False, na_rep=""))
    folder, file = (FIGURES, f"components_{name}") if name else (run.folder / "figures", "components")
    print("drawn:", *save(components_figure(table), folder, file))


def _results(options: argparse.Namespace) -> None:
    from rpo_kit.study.comparisons import differences_text
    from rpo_kit.study.figures import results_figure, save
    from rpo_kit.study.history import history_figure, history_table
    from rpo_kit.study.over_seeds import export_results, tables_over_seeds
    from rpo_kit.study.published_figure import published_figure
    from rpo_kit.study.results import named, read_tables, result_text

    runs = [existing_run(name) for name in options.run]
    run, several = runs[0], len(runs) > 1
    if options.components:
        if several:
            raise KitError("--components takes one run: the study has seeds of its own (components.seeds).")
        _components(run, options.export)
        if options.published:
            _print_published(run)
        return
    metrics, paired = tables_over_seeds(runs) if several else read_tables(f"{require(run, 'evaluate')}/")
    if options.export:
        _say_replaced(f"{options.export}_metrics.csv")
        export_results(runs, metrics, paired, FIGURES / "data", options.export)
    print(*filter(None, [result_text(metrics, paired), differences_text(named(paired))]), sep="\n\n")
    folder, prefix = (FIGURES, f"{options.export}_") if options.export else (run.folder / "figures", "")
    figures = {"results": results_figure(metrics)}
    if len(history_table(metrics)):
        figures["history"] = history_figure(metrics)
    data = run.preset.data
    if options.published and (beside := published_figure(data.task, metrics, invented=data.source == "personas")):
        figures["published"] = beside
    print("drawn:", *[path for name, figure in figures.items() for path in save(figure, folder, f"{prefix}{name}")])
    if options.published:
        _print_published(run)


def _transfer(options: argparse.Namespace) -> None:
    from rpo_kit.runs import write_text
    from rpo_kit.study.transfer import report, transfer

    sources, targets = ([existing_run(name) for name in names] for names in (options.sources, options.targets))
    found = transfer(sources, targets, options.module)
    print(report(found))
    if options.export:
        _say_replaced(f"{options.export}_transfer.csv")
        write_text(FIGURES / "data" / f"{options.export}_transfer.csv", found.to_csv(index=False))


def _say_replaced(file: str) -> None:
    if (FIGURES / "data" / file).exists():
        print(f"figures/data/{file} and its companions, stored before, are replaced")


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
