"""Pages and tables for notebooks: plain values in, HTML or a DataFrame out; no widget, no model, no state.

User text is escaped, so it is shown and never interpreted. `widgets.py` puts controls around these pages.

    page(retrieved_html(task, example, ["bm25", "recency"], k=4))      # two columns of history items, side by side
    show_table(comparison_table(task, examples, {"sft": […], "rl": […]}))
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, NotRequired, TypedDict

import pandas as pd
from IPython.display import HTML

from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.personas import persona
from rpo_kit.lamp.retrieval import rank, top_k
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.presets import PRESETS
from rpo_kit.rewriting.trajectory import Trajectory

if TYPE_CHECKING:  # its module imports torch, which a page does not need
    from rpo_kit.training.rollouts import Rollout

LABEL = "opacity:0.65;font-size:90%"
_BOX = "border:1px solid currentColor;border-radius:6px;padding:8px 12px;margin:6px 0;max-width:60em;line-height:1.5"
_WRAPPED = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"  # JupyterLab breaks words in <pre>
_CELL = "text-align:left;vertical-align:top;padding:3px 6px"
_SHORT, _LONG = ";white-space:nowrap", ";white-space:pre-wrap;overflow-wrap:anywhere;min-width:8em;max-width:32em"


class TrajectoryRecord(TypedDict):
    """A line of `synthesize/trajectories.jsonl` (with the three parts) or `rejected.jsonl` (with text and reason)."""

    id: str
    example: str  # id of the train example
    first: int  # rank of the first item
    items: list[str]  # ids of the items that the teacher saw
    observe: NotRequired[str]
    plan: NotRequired[str]
    rewrite: NotRequired[str]
    wrote: NotRequired[str]  # the teacher's own rewrite, if the gold replaced it
    text: NotRequired[str]  # what the teacher wrote
    reason: NotRequired[str]  # why it was rejected
    complaint: NotRequired[str]  # what was wrong with the first attempt, if this is the second


def page(*parts: str) -> HTML:
    """The parts as one page of a notebook."""
    return HTML("".join(parts))


def item_lines(task: Task, items: Sequence[Item], first: int = 1, marked: Sequence[str] = ()) -> str:
    """History items, numbered from `first` on; those whose id is in `marked` are bold."""
    lines = []
    for number, item in enumerate(items, first):
        text = f"[{number}] {html.escape(task.item_line(item))}"
        text = text.replace("-&gt; ", "-&#8288;&gt;&nbsp;")  # no line break inside or after the arrow
        lines.append(f"<div style='margin:3px 0'>{f'<b>{text}</b>' if item['id'] in marked else text}</div>")
    return "".join(lines) or "<i>no items</i>"


def box(label: str, body: str) -> str:
    """A framed part of a page; `body` is HTML, `label` is text."""
    return f"<div style='{_BOX}'><div style='{LABEL}'>{html.escape(label)}</div>{body}</div>"


def trajectory_of(record: TrajectoryRecord) -> Trajectory:
    """The trajectory of an accepted record."""
    return Trajectory(record["observe"], record["plan"], record["rewrite"])


def trajectory_html(task: Task, record: TrajectoryRecord, example: Example) -> str:
    """One accepted or rejected trajectory, with the items shown to the teacher and the habit, which was not."""
    items = {item["id"]: item for item in example["profile"]}
    if "reason" in record:
        verdict, text = f"rejected: {record['reason']}", record["text"] or "(the teacher wrote nothing)"
    else:
        verdict = "accepted"
        text = "\n".join(f"{part:8} {words}" for part, words in asdict(trajectory_of(record)).items())
    if "complaint" in record:
        verdict += f" on the second attempt (first attempt: {record['complaint']})"
    if "wrote" in record:
        verdict += f"; the teacher wrote {record['wrote']!r}"
    query = (
        f"{html.escape(task.query_text(example['input']))}<br>generic answer: <b>{html.escape(example['generic'])}</b>"
        f" &nbsp; gold: <b>{html.escape(example['output'])}</b>"
    )
    return (
        box("query", query)
        + box("items that the teacher saw", item_lines(task, [items[id_] for id_ in record["items"]], record["first"]))
        + box(f"trajectory, {verdict}", f"<pre style='{_WRAPPED};margin:0'>{html.escape(text)}</pre>")
        + _habit_line(example)
    )


def hidden_habit(example: Example) -> str:
    """The habit that `personas` stored beside the data; for real LaMP users it is unknown."""
    facts = example.get("facts") or {}
    return str(facts["habit"]["name"]) if facts else "unknown (no personas)"


def _habit_line(example: Example) -> str:
    return f"<div style='{LABEL}'>hidden habit of this user: {html.escape(hidden_habit(example))}</div>"


def retrieved_html(task: Task, example: Example, retrievers: Sequence[str], k: int) -> str:
    """The first k items of each retriever, side by side; items that all of them found are bold, and counted."""
    items_of = {name: top_k(example, rank(task, [example], name)[0], k) for name in retrievers}
    found = [{item["id"] for item in items} for items in items_of.values()]
    common = set.intersection(*found) if len(retrievers) > 1 else set()  # of one retriever, bold would say nothing
    columns = [
        f"<div style='flex:1 1 13em;min-width:13em'>{box(name, item_lines(task, items, marked=sorted(common)))}</div>"
        for name, items in items_of.items()
    ]
    query, gold = html.escape(task.query_text(example["input"])), html.escape(example["output"])
    return (
        box(f"query of user {example['user_id']}", f"{query}<br>gold: <b>{gold}</b>")
        + f"<div style='display:flex;gap:12px;flex-wrap:wrap'>{''.join(columns)}</div>"
        + _common_line(len(common), retrievers, k)
        + _habit_line(example)
    )


def _common_line(common: int, retrievers: Sequence[str], k: int) -> str:
    """How many items are bold; nothing to compare with one retriever."""
    if len(set(retrievers)) < 2:
        return ""
    found = f"bold: the {common} found by all of them" if common else "no item is found by all of them, so none is bold"
    return f"<div style='{LABEL}'>the top {k} of each retriever; {found}</div>"


def overlap_table(task: Task, examples: Sequence[Example], retrievers: Sequence[str], k: int) -> pd.DataFrame:
    """Overlap of retrievers: the share of the first retriever's top k items that are in each retriever's top k.

    One row, one column per retriever, pooled over the examples.
    """
    first_k = {name: [set(order[:k]) for order in rank(task, examples, name)] for name in retrievers}
    reference = first_k[retrievers[0]]
    total = sum(len(items) for items in reference)
    common = {name: sum(len(a & b) for a, b in zip(reference, sets, strict=True)) for name, sets in first_k.items()}
    return pd.DataFrame([{name: count / total for name, count in common.items()}])


def tokens_html(prompt: str, completion: str) -> str:
    """A prompt in grey and, highlighted, the completion: the part that counts in the loss."""
    style = f"{_WRAPPED};max-width:60em;margin:0"
    return box(
        "grey: the prompt, not in the loss; highlighted: the completion, in the loss",
        f"<pre style='{style}'><span style='opacity:0.65'>{html.escape(prompt)}</span>"
        f"<span style='background:#56b4e955'>{html.escape(completion)}</span></pre>",
    )


def rollouts_html(task: Task, group: Sequence[Rollout], example: Example) -> str:
    """The samples of one prompt in one step, side by side: reward and its parts, advantage, cited items, parse error.

    The frame is blue if the advantage is above 0 and orange if it is below.
    """
    k = group[0]["k"]
    answers = (
        f"{html.escape(task.query_text(example['input']))}<br>generic answer: <b>{html.escape(example['generic'])}</b>"
        f" &nbsp; gold: <b>{html.escape(example['output'])}</b>"
    )
    items = item_lines(task, top_k(example, example["ranking"], k))
    shown = f"<details><summary style='{LABEL}'>the {k} items that the module read</summary>{items}</details>"
    columns = "".join(_rollout_html(rollout) for rollout in group)
    return box("query", answers + shown) + f"<div style='display:flex;gap:8px;flex-wrap:wrap'>{columns}</div>"


def _rollout_html(rollout: Rollout) -> str:
    advantage = rollout["advantage"]
    color = "#0072b2" if advantage > 0 else "#d55e00" if advantage < 0 else "currentColor"
    lines = [
        f"<b>reward {rollout['reward']:.3f}</b>, advantage {advantage:+.2f}",
        f"score {rollout['score']:.3f}, format {rollout['format']:.0f}",
        f"cites {', '.join(f'[{number}]' for number in rollout['cited']) or 'nothing'}",
        f"{rollout['tokens']} tokens{'' if rollout['ended'] else ', cut off'}",
    ]
    if rollout["parse_error"]:
        lines.append(f"<b>does not parse:</b> {html.escape(rollout['parse_error'])}")
    text = html.escape(rollout["text"]) or "(nothing)"
    return (
        f"<div style='flex:1 1 15em;min-width:15em;max-width:26em;border:2px solid {color};border-radius:6px;"
        f"line-height:1.5;padding:6px 10px'><div style='{LABEL}'>{'<br>'.join(lines)}</div>"
        f"<pre style='{_WRAPPED};margin:6px 0 0'>{text}</pre></div>"
    )


def comparison_table(task: Task, examples: Sequence[Example], predictions: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row per example: query, gold, generic answer, and each system's prediction with its score."""
    golds = [example["output"] for example in examples]
    table = pd.DataFrame({"query": [task.query_text(e["input"]) for e in examples], "gold": golds})
    table["generic"] = [example["generic"] for example in examples]
    for name, texts in predictions.items():
        table[name] = list(texts)
        table[f"{name} score"] = example_scores(task, golds, texts).round(2)
    return table


def habit_check(task: Task, records: Sequence[TrajectoryRecord], examples: Mapping[str, Example]) -> pd.DataFrame:
    """Trajectories by whether their items show the user's habit (rows) and by acceptance (columns)."""
    counts = {(shows, outcome): 0 for shows in ("yes", "no") for outcome in ("accepted", "rejected")}
    for record in records:
        facts = examples[record["example"]]["facts"]
        items = {item["id"]: item for item in examples[record["example"]]["profile"]}
        if facts:  # personas only
            rules = persona(task.name)
            habits = {rules.shown_habit(items[id_], facts["items"][id_]) for id_ in record["items"]}
            shows = "yes" if habits == {facts["habit"]["name"]} else "no"
            counts[shows, "rejected" if "reason" in record else "accepted"] += 1
    rows = [[shows, counts[shows, "accepted"], counts[shows, "rejected"]] for shows in ("yes", "no")]
    return pd.DataFrame(rows, columns=["the items show the user's habit", "accepted", "rejected"])


def acceptance_table(accepted: Sequence[TrajectoryRecord], rejected: Sequence[TrajectoryRecord]) -> pd.DataFrame:
    """Trajectories by outcome: accepted, on which attempt, or the reason for the rejection."""
    outcomes = ["accepted on the second attempt" if "complaint" in record else "accepted" for record in accepted]
    counts = pd.Series(outcomes + [record["reason"] for record in rejected], dtype=object).value_counts()
    table = counts.rename_axis("outcome").reset_index(name="count")
    return table.assign(share=table["count"] / max(1, table["count"].sum()))


def trajectory_table(accepted: Sequence[TrajectoryRecord]) -> pd.DataFrame:
    """Words in each part and number of cited items: smallest, median and largest."""
    trajectories = [trajectory_of(record) for record in accepted]
    columns = {
        "words in observe": [len(trajectory.observe.split()) for trajectory in trajectories],
        "words in plan": [len(trajectory.plan.split()) for trajectory in trajectories],
        "words in rewrite": [len(trajectory.rewrite.split()) for trajectory in trajectories],
        "items cited": [len(trajectory.cited) for trajectory in trajectories],
    }
    rows = pd.DataFrame(columns, dtype=float).agg(["min", "median", "max"]).T
    return rows.set_axis(["smallest", "median", "largest"], axis=1).rename_axis("").reset_index()


def preset_table() -> pd.DataFrame:
    """One row per preset, with what determines its running time: the model, SFT sequences and RL completions."""
    rows = []
    for preset in PRESETS.values():
        sft, rl = preset.sft, preset.rl
        row: dict[str, object] = {"preset": preset.name, "for": preset.about}
        row |= {"reflection model": preset.reflection.name, "4-bit": preset.reflection.load_in_4bit}
        row["SFT sequences"] = sft.steps * sft.batch_size * sft.accumulate
        row["RL completions"] = rl.steps * rl.prompts_per_step * rl.group_size
        rows.append(row | {"k in RL": f"{rl.shots_from} to {rl.shots_to}"})
    return pd.DataFrame(rows)


def show_table(table: pd.DataFrame, caption: str = "", grey: Iterable[bool] = ()) -> HTML:
    """A small table with untruncated texts, left-aligned, numbers to three places; rows marked in `grey` are pale
    and italic.
    """
    head = "".join(
        f"<th style='{_CELL}'>{html.escape(str(name)).replace('_', '_<wbr>')}</th>" for name in table.columns
    )
    rows = ["".join(_cell(value) for value in row) for row in table.to_numpy(object)]
    pale = [" style='opacity:0.65;font-style:italic'" if is_grey else "" for is_grey in grey] or [""] * len(rows)
    body = "".join(f"<tr{style}>{row}</tr>" for style, row in zip(pale, rows, strict=True))
    label = f"<div style='{LABEL}'>{html.escape(caption)}</div>" if caption else ""
    return page(f"{label}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _cell(value: object) -> str:
    """Numbers and single words stay whole; longer texts give way, so that a table with many columns fits."""
    if isinstance(value, float):
        text = "" if pd.isna(value) else f"{value:.3f}"
    else:
        text = "yes" if value is True else "no" if value is False else str(value)
    return f"<td style='{_CELL}{_SHORT if len(text) <= 12 else _LONG}'>{html.escape(text)}</td>"
