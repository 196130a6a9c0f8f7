"""The inputs of notebook 08: the settings of a question, and the rows in which items are switched off or edited.

Each control has its label above it. Both classes know what is set and nothing of models; `playground_widgets.py` puts
them on a page and listens to them.

    settings = Settings(play)
    settings.fill(play.load())
    settings.k.value = 1
    settings.state()             # State(source='run', …, k=1, …)
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as w

from rpo_kit.lamp.example import Example
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.study.html import LABEL
from rpo_kit.study.playground import Playground
from rpo_kit.study.playground_state import HOTTEST, MOST_DRAWS, MOST_ITEMS, SOURCES, STAGES, Edits, State
from rpo_kit.study.typed_items import as_line, item_of, line_form

_SEEN = 22  # characters of a query that a narrow list does not cut; the whole query stands below it
_AUTO = w.Layout(width="auto")  # 100 % clips a control's right border


class Settings:
    """Whose history, which query, and how it is answered."""

    def __init__(self, play: Playground) -> None:
        there = {"run": play.users, "persona": play.personas, "own": True}
        self.source = w.Dropdown(options=[(SOURCES[n], n) for n in SOURCES if there[n]], layout=_AUTO)
        self.user = w.Dropdown(options=_users(play.users), layout=_AUTO)
        self.persona = w.Dropdown(options=_users(play.personas), layout=_AUTO)
        self.items = w.Textarea(rows=6, continuous_update=False, layout=_AUTO)
        queries = [
            (f"{example['user_id']}: {play.task.query_text(example['input'])[:_SEEN]} …", id_)
            for id_, example in play.examples.items()
        ]
        self.asked = w.Dropdown(options=[("my own words", ""), *queries], layout=_AUTO)
        self.parts = {name: w.Textarea(rows=3, continuous_update=False, layout=_AUTO) for name in play.task.parts}
        self.words: dict[str, str] = {}  # of the query that was typed in last
        self.gold = w.Text(continuous_update=False, layout=_AUTO)
        self.k = w.IntSlider(min=1, max=MOST_ITEMS, continuous_update=False, layout=_AUTO)
        self.retriever = w.Dropdown(options=play.retrievers, layout=_AUTO)
        self.stage = w.Dropdown(options=[(label, name) for name, label in STAGES.items()], layout=_AUTO)
        self.temperature = w.FloatSlider(min=0, max=HOTTEST, step=0.1, continuous_update=False, layout=_AUTO)
        self.draw = w.BoundedIntText(min=0, max=MOST_DRAWS, layout=_AUTO)
        self.others = (self.items, self.gold, self.k, self.retriever, self.stage, self.temperature, self.draw)
        self._arrange(line_form(play.task))

    def _arrange(self, form: str) -> None:
        own = f"my items, one per line, in the form <code>{html.escape(form)}</code>"
        self.chosen = {
            "run": _labelled("user", self.user),
            "persona": _labelled("invented user, with the habit", self.persona),
            "own": _labelled(own, self.items),
        }
        self.widget = w.VBox(
            [
                _labelled("whose history", self.source),
                *self.chosen.values(),
                _labelled("whose query", self.asked),
                *(_labelled(f"query: {name}", part) for name, part in self.parts.items()),
                _labelled("gold, if it is known", self.gold),
                _labelled("k: how many items are shown", self.k),
                _labelled("retriever", self.retriever),
                _labelled("stage of the reflection module", self.stage),
                _labelled("temperature (0: always the most likely word)", self.temperature),
                _labelled("draw (above 0: another number, another sample)", self.draw),
            ]
        )

    @property
    def user_id(self) -> str:
        """The example id of the chosen user; "" for own items."""
        return {"run": self.user.value, "persona": self.persona.value}.get(self.source.value) or ""

    def state(self, edits: Edits | None = None) -> State:
        """What the controls say now."""
        others = {name: getattr(self, name).value for name in ("items", "gold", "k", "retriever", "stage", "draw")}
        return State(
            source=self.source.value,
            user=self.user.value or "",
            persona=self.persona.value or "",
            asked=self.asked.value,
            parts={name: part.value for name, part in self.parts.items()},
            words=self.words,
            temperature=self.temperature.value,
            edits=edits or {},
            **others,
        )

    def fill(self, state: State) -> None:
        """Set every control."""
        names = ("source", "items", "asked", "gold", "k", "retriever", "stage", "temperature", "draw")
        for name in names:
            getattr(self, name).value = getattr(state, name)
        for control, id_ in ((self.user, state.user), (self.persona, state.persona)):
            if id_:
                control.value = id_
        for name, part in self.parts.items():
            part.value = state.parts.get(name, "")
        self.words = state.words
        self.show_chosen()

    def show_chosen(self) -> None:
        """Of the three ways to choose a history, show the one that is meant."""
        for name, control in self.chosen.items():
            control.layout.display = "" if name == self.source.value else "none"


class ItemRows:
    """A row per item of an answer: a box to switch it off, and its line to edit."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.items: Sequence[Item] = ()
        self.edits: Edits = {}
        self.shown = [w.Checkbox(description=f"[{n}]", indent=False) for n in range(1, MOST_ITEMS + 1)]
        self.lines = [w.Text(continuous_update=False, layout=w.Layout(flex="1 1 auto")) for _ in self.shown]
        for box, line in zip(self.shown, self.lines, strict=True):
            box.layout, line.tooltip = w.Layout(width="4.5em"), f"{box.description}: {line_form(task)}"
        self.rows = [w.HBox(pair) for pair in zip(self.shown, self.lines, strict=True)]
        self.widget = w.VBox(self.rows)

    def observe(self, changed: Callable[[object], None]) -> None:
        for control in (*self.shown, *self.lines):
            control.observe(changed, "value")

    def fill(self, items: Sequence[Item]) -> None:
        """Show these items, with the changes that were made to them before."""
        self.items = items
        lines = [as_line(self.task, item) for item in items]
        for number, row in enumerate(self.rows):
            row.layout.display = "" if number < len(lines) else "none"
        for line, box, text in zip(lines, self.shown, self.lines, strict=False):
            box.value, text.value = self.edits.get(line, [True, line])

    def note_edits(self) -> None:
        """Remember what is switched off or edited now, by the item's own line."""
        edits = dict(self.edits)
        for item, box, text in zip(self.items, self.shown, self.lines, strict=False):
            own = as_line(self.task, item)
            edits.pop(own, None)
            if not box.value or text.value != own:
                edits[own] = [box.value, text.value]
        self.edits = edits

    def edited(self) -> list[Item]:
        """The items that are switched on, as they are edited. Raises KitError: a line is not of the task's form."""
        items = []
        for number, (item, box, text) in enumerate(zip(self.items, self.shown, self.lines, strict=False), 1):
            if box.value and text.value == as_line(self.task, item):
                items.append(item)
            elif box.value:
                items.append(item | item_of(self.task, text.value, item["id"], f"Item [{number}]"))
        return items


def _users(examples: Mapping[str, Example]) -> list[tuple[str, str]]:
    """(label, example id); an invented user is named with the habit."""
    labels = []
    for id_, example in examples.items():
        facts: Any = example.get("facts") or {}
        habit = f": {facts['habit']['name']}" if facts else ""
        labels.append((f"{example['user_id']} (example {id_}){habit}", id_))
    return labels


def _labelled(label: str, control: w.Widget) -> w.VBox:
    """The control below its label, which is its name for a screen reader as well."""
    control.tooltip = html.unescape(re.sub(r"<[^>]+>", "", label))
    return w.VBox([w.HTML(f"<span style='{LABEL}'>{label}</span>"), control], layout=w.Layout(margin="0 0 4px 0"))
