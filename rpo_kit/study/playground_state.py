"""What the controls of notebook 08 say, kept in the run's folder so that a restart of the kernel loses nothing.

`playground.json` is written atomically at every change. What cannot be read or is no longer possible (another file
version, a user who is gone, a number out of range) is as on a new page; the rest is kept.

    keep_state(run.folder / "playground.json", state)
    read_state(run.folder / "playground.json", first, {"stage": ("untrained", "sft", "rl")})
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rpo_kit.runs import read_json, write_json
from rpo_kit.text import replace_surrogates

STAGES = {"untrained": "untrained", "sft": "SFT", "rl": "SFT + RL"}
SOURCES = {"run": "a user of this run", "persona": "an invented user", "own": "my own items"}
MOST_ITEMS = 12  # ours: the largest k
HOTTEST = 2.0  # ours: the largest temperature
MOST_DRAWS = 9999

Edits = dict[str, list[Any]]  # {an item's line: [whether it is shown, its new line]}


@dataclass(frozen=True)
class State:
    """What the controls say; kept in the run's folder."""

    source: str = "run"  # whose items: a dev user's, an invented user's, or those typed in
    user: str = ""  # example id of the dev user
    persona: str = ""  # example id of the invented user
    items: str = ""  # typed in, one per line
    asked: str = ""  # example id whose query it is; "" if it was typed in
    parts: dict[str, str] = field(default_factory=dict)  # of the query
    words: dict[str, str] = field(default_factory=dict)  # those of the query that was typed in last
    gold: str = ""  # "" if it is unknown
    k: int = 6
    retriever: str = "bm25"
    stage: str = "rl"
    temperature: float = 0.0
    draw: int = 0  # the seed, at a temperature above 0
    edits: Edits = field(default_factory=dict)  # what if


def read_state(file: Path, first: State, choices: Mapping[str, Collection[str]]) -> State:
    """The state in the file; `first` where there is none. `choices` are the values that a field may have."""
    stored = read_json(file)
    if not isinstance(stored, dict):
        return first
    kept = {f.name: stored[f.name] for f in fields(State) if _same_kind(stored.get(f.name), getattr(first, f.name))}
    state = replace(first, **{name: value for name, value in kept.items() if value in choices.get(name, [value])})
    return replace(
        state,
        k=min(max(state.k, 1), MOST_ITEMS),
        temperature=min(max(float(state.temperature), 0.0), HOTTEST),
        draw=min(max(state.draw, 0), MOST_DRAWS),
        parts=_texts(state.parts),
        words=_texts(state.words),
        edits={line: edit for line, edit in state.edits.items() if _is_edit(edit)},
    )


def keep_state(file: Path, state: State) -> None:
    """Write the state, atomically. Raises OSError if it cannot be written."""
    write_json(file, _without_surrogates(asdict(state)))


def _same_kind(value: object, like: object) -> bool:
    number = isinstance(like, float) and isinstance(value, int | float) and not isinstance(value, bool)
    return number or type(value) is type(like)


def _texts(parts: Mapping[str, object]) -> dict[str, str]:
    return {name: text for name, text in parts.items() if isinstance(text, str)}


def _is_edit(edit: object) -> bool:
    return isinstance(edit, list) and [type(part) for part in edit] == [bool, str]


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(part) for part in value]
    return replace_surrogates(value) if isinstance(value, str) else value
