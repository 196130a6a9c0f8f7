"""How much better than the unchanged query could a rewrite be, what does the module do to it, does it read the items?

    python scripts/room_above_echo.py RUN [RUN ...] [--store NAME]     # runs that differ in their seeds

For LaMP-7, whose query is a text of its own. It scores readers who know something of the gold that no module can know,
on the dev users of a prepared run:

    query                       the query, unchanged
    generic                     the base model's answer
    better of the two           whichever of them scores higher, chosen per user
    gold's length               the query, cut to the gold's number of words
    gold's spelling             the query, with the gold's spelling of words that differ in letters said again or in
                                apostrophes alone: "so" and "sooo", "I'm" and "im"
    words the gold has          the query without the words that the gold does not have
    the same, gold's order      these words in the gold's order
    words of query or generic   the words of either that the gold has, in its order

Case, punctuation and emoji do not count in ROUGE, so a style that consists of these moves no score.

If the runs are evaluated, a second table says of the completions of each module that parse: how alike the rewrite and
the query are (the score of one against the other), how many have the query's words in its order, and how they score
against the query itself, where they change its words.

The third table compares what the observations say, in the hindsight teacher's form, with the item that they cite, and
with the next user's item of the same rank. A module that reads its items says more that is true of the former; one that
has only learned what is frequent does not.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.trajectory import parse
from rpo_kit.runs import Run, existing_run, read_records
from rpo_kit.setting_rules import kind_of
from rpo_kit.study.over_seeds import check_alike, check_current
from rpo_kit.study.statistics import bootstrap_interval
from rpo_kit.training.hindsight_texts import Traits, read_traits, squashed

DATA = Path(__file__).resolve().parents[1] / "figures" / "data"
_WORD = re.compile(r"[a-z0-9]+")  # as ROUGE reads texts
_LINE = re.compile(r"^\[(\d{1,4})\] *(.+?) *$", re.MULTILINE)


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def among(text: str, known: str) -> str:
    """The words of `text`, in their order, that `known` has too, each as often as it has it."""
    left, kept = Counter(words(known)), []
    for word in words(text):
        if left[word]:
            left[word] -= 1
            kept.append(word)
    return " ".join(kept)


def respelled(text: str, gold: str) -> str:
    """The text, with the gold's spelling of each word that both have."""
    spelling = {squashed(word): word for word in gold.split()}
    return " ".join(spelling.get(squashed(word), word) for word in text.split())


READERS: dict[str, Callable[[str, str, str], str]] = {  # of query, generic answer and gold
    "query": lambda query, generic, gold: query,
    "generic": lambda query, generic, gold: generic,
    "gold's length": lambda query, generic, gold: " ".join(query.split()[: len(gold.split())]),
    "gold's spelling": lambda query, generic, gold: respelled(query, gold),
    "words the gold has": lambda query, generic, gold: among(query, gold),
    "the same, gold's order": lambda query, generic, gold: among(gold, query),
    "words of query or generic": lambda query, generic, gold: among(gold, f"{query} {generic}"),
}


def table(run: Run) -> pd.DataFrame:
    """One row per reader: score with interval, and the share of users whom the reader serves better than the query."""
    task, examples = get_task(run.preset.data.task), load_prepared(run, "dev")
    if "echo" not in task.baselines:
        raise KitError(f"{task.name} has no query that could be the answer: only LaMP-7 has.")
    golds, users = [example["output"] for example in examples], [example["user_id"] for example in examples]
    queries = [task.query_text(example["input"]) for example in examples]
    by_reader = {
        name: np.asarray(example_scores(task, golds, list(map(read, queries, [e["generic"] for e in examples], golds))))
        for name, read in READERS.items()
    }
    by_reader["better of the two"] = np.maximum(by_reader["query"], by_reader["generic"])
    rows = [
        (name, values.mean(), *bootstrap_interval(values, users), float((values > by_reader["query"] + 1e-9).mean()))
        for name, values in by_reader.items()
    ]
    columns = ["reader", "score", "low", "high", "better_than_query"]
    return pd.DataFrame(rows, columns=columns).sort_values("score", ignore_index=True).assign(examples=len(examples))


def module_records(run: Run) -> Iterator[tuple[str, list[Example], list[dict[str, str]]]]:
    """(system, examples, records) of each evaluated module, where the completion parses."""
    examples = load_prepared(run, "dev")
    for path in sorted((run.stage("evaluate") / "records").glob("*.jsonl")):
        if kind_of(path.stem) in ("sft", "rl"):
            records = {record["id"]: record for record in read_records(path) if not record["complaint"]}
            if parsed := [example for example in examples if example["id"] in records]:
                yield path.stem, parsed, [records[example["id"]] for example in parsed]


def module_table(run: Run) -> pd.DataFrame:
    """One row per evaluated module: what its rewrites make of the query, where the completion parses."""
    task, examples = get_task(run.preset.data.task), load_prepared(run, "dev")
    rows = []
    for system, parsed, records in module_records(run):
        rewrites = [record["prediction"] for record in records]
        queries, golds = [task.query_text(e["input"]) for e in parsed], [e["output"] for e in parsed]
        gains = np.asarray(example_scores(task, golds, rewrites)) - np.asarray(example_scores(task, golds, queries))
        same = np.array([words(one) == words(other) for one, other in zip(rewrites, queries, strict=True)])
        changed = gains[~same]
        low, high = (np.nan, np.nan)
        if len(changed):
            low, high = bootstrap_interval(
                changed, [e["user_id"] for e, alike in zip(parsed, same, strict=True) if not alike]
            )
        alike = np.mean(example_scores(task, queries, rewrites))
        rows.append((system, len(parsed) / len(examples), alike, same.mean(), len(changed), changed.mean(), low, high))
    columns = ["system", "parsed", "alike", "same_words", "changed", "score_minus_query", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def facts_said(said: str, traits: Traits) -> dict[str, bool]:
    """Which facts an observation states in the teacher's form, and whether a text with these traits has them.

    >>> facts_said("so … lol: lower case, ends !, lol", read_traits("so tired lol"))
    {'casing': True, 'first word': True, 'last word': True, 'end mark': False, 'mark or spelling': True}
    """
    quote, _, rest = said.rpartition(": ")
    casing, *parts = [part.strip() for part in rest.split(",")]
    facts = {"casing": casing == traits.case}
    if quote:
        said_words, true_words = (words.casefold().split(" … ") for words in (quote, traits.quote))
        facts |= {"first word": said_words[0] == true_words[0], "last word": said_words[-1] == true_words[-1]}
    ends = [part for part in parts if part.startswith("ends ") or part == "no end mark"]
    if ends:
        facts["end mark"] = ends[0] == traits.end
    if named := [part for part in parts if part not in ends and not part.endswith(" words")]:
        facts["mark or spelling"] = set(named) <= {*traits.marks, *traits.spellings}
    return facts


def _of_another_user(run: Run) -> dict[str, str]:
    """For the id of each dev example that of the next one of another user; "" if there is one user only."""
    examples = load_prepared(run, "dev")
    found = {}
    for place, example in enumerate(examples):
        following = [*examples[place + 1 :], *examples[:place]]
        found[example["id"]] = next((e["id"] for e in following if e["user_id"] != example["user_id"]), "")
    return found


def observation_table(run: Run) -> pd.DataFrame:
    """One row per evaluated module and kind of fact: the shares true of the item cited and of another user's."""
    shots = run.preset.evaluation.shots
    shown = {
        example["id"]: [read_traits(item["text"]) for item in top_k(example, example["ranking"], shots)]
        for example in load_prepared(run, "dev")
    }
    others, rows = _of_another_user(run), []
    for system, parsed, records in module_records(run):
        for example, record in zip(parsed, records, strict=True):
            trajectory = parse(record["raw"], run.preset.reflection.sections).trajectory
            own, other = shown[example["id"]], shown.get(others[example["id"]], [])
            for number, said in _LINE.findall(trajectory.observe if trajectory else ""):
                if 1 <= int(number) <= min(len(own), len(other)):
                    here, there = (facts_said(said, items[int(number) - 1]) for items in (own, other))
                    rows += [(system, example["user_id"], fact, here[fact], there[fact]) for fact in here]
    stated = pd.DataFrame(rows, columns=["system", "user", "fact", "true", "of another user"])
    found = []
    for (system, fact), group in stated.groupby(["system", "fact"]):
        true, other = group["true"].to_numpy(float), group["of another user"].to_numpy(float)
        low, high = bootstrap_interval(true - other, group["user"].tolist())
        found.append((system, fact, len(group), true.mean(), other.mean(), true.mean() - other.mean(), low, high))
    columns = ["system", "fact", "stated", "true", "of_another_user", "difference", "low", "high"]
    return pd.DataFrame(found, columns=columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", help="a run of LaMP-7 after prepare; several, if they differ in their seeds")
    parser.add_argument("--store", metavar="NAME", help="also write figures/data/NAME.csv")
    options = parser.parse_args()
    try:
        runs = [existing_run(name) for name in options.run]
        check_alike(runs)
        for run in runs:
            if (run.stage("evaluate") / "records").exists():
                check_current(run)
        tables = {"": table(runs[0])}
        for name, of_run in (("_module", module_table), ("_observations", observation_table)):
            tables[name] = pd.concat([of_run(run).assign(run=run.name) for run in runs], ignore_index=True)
    except KitError as error:
        raise SystemExit(str(error)) from None
    for name, rows in tables.items():
        if options.store and len(rows):
            rows.to_csv(DATA / f"{options.store}{name}.csv", index=False)
        print(rows.round(3).to_string(index=False) if len(rows) else "", end="\n\n")


if __name__ == "__main__":
    main()
