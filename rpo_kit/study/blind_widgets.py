"""The blind test in a notebook: two texts, three buttons, the result whenever it is wanted.

Works without a screen: press `.buttons["A"].click()`, read `.page.value`. Keys: Tab moves between the buttons, Enter or
the space bar presses the one that is marked.

    blind_test(existing_run("mine"))
"""

from __future__ import annotations

import html

import ipywidgets as w

from rpo_kit.errors import KitError
from rpo_kit.runs import Run
from rpo_kit.study.accessible import framed
from rpo_kit.study.blind import CHOICES, TIE, BlindTest
from rpo_kit.study.html import LABEL, box
from rpo_kit.study.kernel import name_notebooks
from rpo_kit.study.widgets import page_bundle

_PRE = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:110%"


class BlindPage:
    """The page around a `BlindTest`; where there is none, the sentence that says why."""

    def __init__(self, test: BlindTest | None, missing: str = "") -> None:
        self.test = test
        self.page, self.result = w.HTML(), w.HTML()
        self.buttons = {name: w.Button(description=name, layout=w.Layout(width="auto")) for name in CHOICES}
        tips = {"A": "Text A is better", "B": "Text B is better", TIE: "Neither text is better"}
        for name, button in self.buttons.items():
            button.tooltip = tips[name]
            button.on_click(lambda _, name=name: self.choose(name))
        self.show = w.Button(description="Result so far", tooltip="Show the win rate", layout=w.Layout(width="auto"))
        self.show.on_click(lambda _: self._result())
        row = w.HBox([*self.buttons.values(), self.show], layout=w.Layout(flex_flow="row wrap", grid_gap="8px"))
        self.widget = framed(self.page, row, self.result) if test else framed(self.page)
        if test:
            self._draw(test)
        else:
            self.page.value = f"<div>{html.escape(missing)}</div>"

    def choose(self, choice: str) -> None:
        """Store the answer and go on to the next pair."""
        if self.test is None:
            return
        try:
            self.test.answer(choice)
        except (KitError, OSError) as error:
            self.result.value = f"<div>{html.escape(str(error))}</div>"
            return
        self.result.value = ""
        self._draw(self.test)

    def _draw(self, test: BlindTest) -> None:
        pair, done = test.current(), len(test.answers())
        for button in self.buttons.values():
            button.disabled = pair is None
        if pair is None:
            self.page.value = "<b>All pairs are answered. Thank you.</b>"
            self._result()
            return
        head = f"Pair {done + 1} of {len(test.pairs)}. Which one sounds more like the person who wrote the texts?"
        texts = [f"<div style='{_PRE}'>{html.escape(text)}</div>" for text in (pair.query, *pair.texts)]
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in pair.history)
        self.page.value = (
            f"<div style='{LABEL}'>{head}</div>"
            + (box("what this person wrote before", lines) if lines else "")
            + box("what is to be said", texts[0])
            + box("text A", texts[1])
            + box("text B", texts[2])
        )

    def _result(self) -> None:
        if self.test is not None:
            self.result.value = f"<div style='{_PRE}'>{html.escape(self.test.result())}</div>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        return page_bundle(self.widget, self.page)


def blind_test(run: Run, stage: str = "") -> BlindPage:
    """The blind test of a run's held-out rewrites, by default of the last stage that is trained. Answers are kept in
    the run's folder. If nothing can be compared yet, the page says why.
    """
    try:
        return BlindPage(BlindTest(run, stage))
    except KitError as error:
        return BlindPage(None, name_notebooks(str(error)))
