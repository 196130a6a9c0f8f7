"""Pages and tables for notebooks: plain values in, HTML or a DataFrame out; no widget, no model, no state.

What a user has written is escaped: it is shown, never interpreted. `widgets.py` puts controls around these pages.

    page(retrieved_html(task, example, ["bm25", "recency"], k=4))      two columns of history items, side by side
    show_table(comparison_table(task, examples, {"sft": […], "rl": […]}))
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML

from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.personas import persona
from rpo_kit.lamp.retrieval import rank, top_k
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.presets import PRESETS
from rpo_kit.rewriting.trajectory import Trajectory

LABEL = "opacity:0.65;font-size:90%"
_BOX = "border:1px solid currentColor;border-radius:6px;padding:8px 12px;margin:6px 0;max-width:60em"
_CELL = (
    "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:break-word;max-width:32em;padding:3px 10px"
)


def page(*parts: str) -> HTML:
    return HTML("".join(parts))


def item_lines(task: Task, items: Sequence[Item], first: int = 1, marked: Sequence[str] = ()) -> str:
    """Numbered history items; those whose id is in `marked` in bold."""
    lines = []
    for number, item in enumerate(items, first):
        text = f"[{number}] {html.escape(task.item_line(item))}".replace(
            "-&gt; ", "-&#8288;&gt;&nbsp;"
        )  # no line break
        lines.append(f"<div style='margin:3px 0'>{f'<b>{text}</b>' if item['id'] in marked else text}</div>")
    return "".join(lines) or "<i>no items</i>"


def box(label: str, body: str) -> str:
    """A framed part of a page; `body` is HTML, `label` is text."""
    return f"<div style='{_BOX}'><div style='{LABEL}'>{html.escape(label)}</div>{body}</div>"


def trajectory_html(task: Task, record: Mapping[str, Any], example: Example) -> str:
    """One accepted or rejected trajectory beside what the teacher was shown, and the habit which it was not."""
    items = {item["id"]: item for item in example["profile"]}
    shown = [items[item_id] for item_id in record["items"]]
    if "reason" in record:
        verdict, text = f"rejected: {record['reason']}", record["text"] or "(the teacher wrote nothing)"
    else:
        verdict, text = "accepted", "\n".join(f"{part:8} {record[part]}" for part in ("observe", "plan", "rewrite"))
    query = html.escape(task.query_text(example["input"]))
    asked = f"{query}<br>generic answer: <b>{html.escape(example['generic'])}</b>"
    asked += f" &nbsp; the user's own: <b>{html.escape(example['output'])}</b>"
    if "complaint" in record:
        verdict += f" at the second attempt (the first one: {record['complaint']})"
    if "wrote" in record:
        verdict += f"; the teacher wrote {record['wrote']!r}"
    return (
        box("query", asked)
        + box("history shown to the teacher", item_lines(task, shown, record["first"]))
        + box(f"trajectory, {verdict}", f"<pre style='white-space:pre-wrap;margin:0'>{html.escape(text)}</pre>")
        + f"<div style='{LABEL}'>hidden habit of this user: {html.escape(hidden_habit(example))}</div>"
    )


def hidden_habit(example: Example) -> str:
    """The habit that `personas` stored beside the data; real LaMP users have no label."""
    facts = example.get("facts") or {}
    return str(facts["habit"]["name"]) if facts else "unknown (no personas)"


def retrieved_html(task: Task, example: Example, methods: Sequence[str], k: int) -> str:
    """The first k items of each retrieval method, side by side; what all of them found is bold."""
    found = {method: top_k(example, rank(task, [example], method)[0], k) for method in methods}
    common = set.intersection(*({item["id"] for item in items} for items in found.values()))
    columns = [
        f"<div style='flex:1 1 13em;min-width:13em'>{box(method, item_lines(task, items, marked=sorted(common)))}</div>"
        for method, items in found.items()
    ]
    asked = html.escape(task.query_text(example["input"]))
    return (
        box(
            f"user {example['user_id']} asks",
            f"{asked}<br>the user's own answer: <b>{html.escape(example['output'])}</b>",
        )
        + f"<div style='display:flex;gap:12px;flex-wrap:wrap'>{''.join(columns)}</div>"
        + f"<div style='{LABEL}'>hidden habit of this user: {html.escape(hidden_habit(example))}</div>"
    )


def tokens_html(grey: str, counted: str) -> str:
    """A prompt in grey and, highlighted, the completion: the part that counts in the loss."""
    style = "white-space:pre-wrap;max-width:60em;margin:0"
    return box(
        "grey: the prompt, not in the loss; marked: the completion, in the loss",
        f"<pre style='{style}'><span style='opacity:0.55'>{html.escape(grey)}</span>"
        f"<span style='background:#56b4e955'>{html.escape(counted)}</span></pre>",
    )


def comparison_table(task: Task, examples: Sequence[Example], predictions: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row an example: query, generic answer, the predictions of each system with their scores, the true output."""
    golds = [example["output"] for example in examples]
    table = pd.DataFrame({"query": [task.query_text(e["input"]) for e in examples], "true": golds})
    table["generic"] = [example["generic"] for example in examples]
    for name, texts in predictions.items():
        table[name] = list(texts)
        table[f"{name} score"] = example_scores(task, golds, texts).round(2)
    return table


def habit_check(task: Task, records: Sequence[Mapping[str, Any]], examples: Mapping[str, Example]) -> pd.DataFrame:
    """How many trajectories rest on items that show the user's habit (rows), and how many were kept (columns)."""
    counts = {(shows, kept): 0 for shows in ("yes", "no") for kept in ("yes", "no")}
    for record in records:
        facts = examples[record["example"]]["facts"]
        items = {item["id"]: item for item in examples[record["example"]]["profile"]}
        if facts:  # known for personas only
            rules = persona(task.name)
            seen = {rules.shown_habit(items[key], facts["items"][key]) for key in record["items"]}
            shows = "yes" if seen == {facts["habit"]["name"]} else "no"
            counts[shows, "no" if "reason" in record else "yes"] += 1
    rows = [[counts[shows, kept] for kept in ("yes", "no")] for shows in ("yes", "no")]
    table = pd.DataFrame(rows, columns=["kept", "rejected"])
    table.insert(0, "the items show the user's habit", ["yes", "no"])
    return table


def acceptance_table(accepted: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """How many trajectories were accepted, at once or when they were asked for again, and why the others were not."""
    outcomes = ["accepted at the second attempt" if "complaint" in r else "accepted" for r in accepted]
    counts = pd.Series(outcomes + [record["reason"] for record in rejected], dtype=object).value_counts()
    table = counts.rename_axis("outcome").reset_index(name="count")
    return table.assign(share=table["count"] / max(1, table["count"].sum()))


def trajectory_table(accepted: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Words in each part, and how many items are cited: smallest, median and largest."""
    parts = {part: [len(record[part].split()) for record in accepted] for part in ("observe", "plan", "rewrite")}
    columns = {f"words in {part}": counts for part, counts in parts.items()}
    columns["items cited"] = [len(Trajectory(r["observe"], r["plan"], r["rewrite"]).cited) for r in accepted]
    rows = pd.DataFrame(columns, dtype=float).agg(["min", "median", "max"]).T
    return rows.set_axis(["smallest", "median", "largest"], axis=1).rename_axis("").reset_index()


def preset_table() -> pd.DataFrame:
    """The presets, and the three numbers that time goes with: sequences in SFT, completions in RL, the model."""
    rows = []
    for preset in PRESETS.values():
        sft, rl = preset.sft, preset.rl
        row: dict[str, Any] = {"preset": preset.name, "for": preset.about}
        row |= {"reflection model": preset.reflection.name, "4-bit": preset.reflection.load_in_4bit}
        row["SFT sequences"] = sft.steps * sft.batch_size * sft.accumulate
        row["RL completions"] = rl.steps * rl.prompts_per_step * rl.group_size
        rows.append(row | {"k in RL": f"{rl.shots_from} to {rl.shots_to}"})
    return pd.DataFrame(rows)


def show_table(table: pd.DataFrame, caption: str = "") -> HTML:
    """A small table with whole texts, left-aligned, numbers to three places."""
    head = "".join(f"<th style='{_CELL}'>{html.escape(str(name))}</th>" for name in table.columns)
    rows = ["".join(f"<td style='{_CELL}'>{_shown(value)}</td>" for value in row) for row in table.to_numpy(object)]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    label = f"<div style='{LABEL}'>{html.escape(caption)}</div>" if caption else ""
    return HTML(f"{label}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.3f}"
    return html.escape("yes" if value is True else "no" if value is False else str(value))
