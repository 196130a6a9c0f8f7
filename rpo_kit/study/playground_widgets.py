"""The page of notebook 08 around `playground.py`: settings on the left, the answer on the right, what if below it.

A change dims the answer until the button is pressed again, and is kept in the run's folder at once. Errors become
sentences on the page; no answer, input or setting is lost by one. Everything works without a screen: set `.value`, call
`.click()`, read `.page.value`.

    page = playground(run)
    page.ask()                          # as the button does
    page.settings.k.value = 1           # the answer is dimmed now
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import ipywidgets as w

from rpo_kit.errors import KitError
from rpo_kit.runs import Run
from rpo_kit.study.accessible import framed
from rpo_kit.study.html import LABEL
from rpo_kit.study.kernel import name_notebooks
from rpo_kit.study.playground import Answer, Playground
from rpo_kit.study.playground_controls import ItemRows, Settings
from rpo_kit.study.playground_html import answer_html, change_html, describe
from rpo_kit.study.playground_state import State, keep_state
from rpo_kit.study.widgets import page_bundle

_STALE = "opacity:0.35"
_pages = count(1)  # so that two playgrounds in one notebook have links of their own


class PlaygroundPage:
    """The page. `answer` and `changed` are the last results; `error` is the sentence shown, "" if all went well."""

    def __init__(self, play: Playground) -> None:
        self.play, self.task = play, play.task
        self.anchor = f"rpo-playground-{next(_pages)}-item-"
        self.answer: Answer | None = None
        self.changed: Answer | None = None
        self.error, self.stale, self.filling = "", False, False
        self.settings, self.rows = Settings(play), ItemRows(play.task)
        self.button = w.Button(description="Answer", button_style="primary", layout=w.Layout(width="auto"))
        self.what_if = w.Button(description="Answer with these changes", layout=w.Layout(width="auto"))
        self.status, self.page, self.change = w.HTML(), w.HTML(), w.HTML()
        about = "<b>What if?</b> Switch items off or edit them. The others stay: nothing is retrieved again."
        self.panel = w.VBox([w.HTML(about), self.rows.widget, self.what_if, self.change])
        left = w.VBox([self.settings.widget, self.button], layout=w.Layout(flex="1 1 17em", max_width="24em"))
        right = w.VBox([self.status, self.page, self.panel], layout=w.Layout(flex="1 1 22em", min_width="0"))
        self.widget = framed(w.HBox([left, right], layout=w.Layout(flex_flow="row wrap", grid_gap="16px")))
        state = play.load()
        self.rows.edits = state.edits
        self._fill(state)
        self.user_id = self.settings.user_id
        self._listen()
        self._draw()
        self._say(name_notebooks(play.missing))

    def _listen(self) -> None:
        settings = self.settings
        for control in (settings.source, settings.user, settings.persona):
            control.observe(lambda _: self._choose_user(), "value")
        settings.asked.observe(lambda _: self._choose_query(settings.asked.value), "value")
        for part in settings.parts.values():
            part.observe(lambda _: self._rephrase(), "value")
        for control in settings.others:
            control.observe(lambda _: self._note_change(), "value")
        self.rows.observe(lambda _: self._note_edit())
        self.button.on_click(lambda _: self.ask())
        self.what_if.on_click(lambda _: self.ask_what_if())

    # ---- what is chosen ----

    def _fill(self, state: State) -> None:
        """Set all controls without answering to each of them."""
        self.filling = True
        try:
            self.settings.fill(state)
        finally:
            self.filling = False

    def _choose_user(self) -> None:
        """A user comes with the own query, unless another one was chosen or typed in."""
        if self.filling:
            return
        before, self.user_id = self.user_id, self.settings.user_id or self.user_id
        asked = self.settings.asked.value
        self._choose_query(self.user_id if asked == before else asked)

    def _choose_query(self, asked: str) -> None:
        if not self.filling:
            self._fill(self.play.asking(self.settings.state(), asked))
            self._note_change()

    def _rephrase(self) -> None:
        """The query was edited: it is no user's any more, and its gold is unknown."""
        if self.filling:
            return
        state = self.settings.state()
        self._fill(replace(state, asked="", words=state.parts, gold="" if state.asked else state.gold))
        self._note_change()

    def _note_change(self) -> None:
        """Keep the state, and mark the answer as that of other settings."""
        if self.filling:
            return
        self.stale = self.answer is not None
        self._draw()
        self._say("The settings have changed: press Answer." if self.stale else "")
        self._keep()

    def _note_edit(self) -> None:
        if not self.filling:
            self.rows.note_edits()
            self._draw()
            self._keep()

    def _keep(self) -> None:
        try:
            keep_state(self.play.file, self.settings.state(self.rows.edits))
        except OSError as error:
            self._say(f"The settings cannot be kept for the next start ({error}); they hold until then.")

    # ---- asking ----

    def ask(self) -> None:
        """Answer the question that the controls ask; what is shown stays if that fails."""
        with self._explained("Answering; the first answer of a stage loads its model …") as told:
            answer = self.play.answer(self.play.question(self.settings.state()))
            self.answer, self.changed, self.stale = answer, None, False
            self.filling = True
            self.rows.fill(answer.rewrite.items)
            told.append(describe(answer.question, len(answer.rewrite.items)))

    def ask_what_if(self) -> None:
        """Answer the same question from the items that are switched on, as they are edited."""
        with self._explained("Answering with these changes …") as told:
            if self.answer is None or self.stale:
                raise KitError("Press Answer first: the changes are made to the items that it shows.")
            items, shown = self.rows.edited(), self.answer.rewrite.items
            if items == shown:
                raise KitError("Nothing is changed: switch an item off, or edit it.")
            self.changed = self.play.answer_from(self.answer.question, items)
            told.append(f"what if, {len(items)} of {len(shown)} items")

    @contextmanager
    def _explained(self, doing: str) -> Iterator[list[str]]:
        """Say what goes on, then what was done, in words and seconds, or what went wrong; nothing is raised."""
        told: list[str] = []
        start, self.error = time.perf_counter(), ""
        self.button.disabled = self.what_if.disabled = True
        self._say(doing)
        try:
            yield told
        except Exception as error:  # whatever happens, the page and what was entered stay
            self.error = sentence_of(error)
            self._say(self.error, "Error: ")
        else:
            self._say(f"{time.perf_counter() - start:.1f} s: {', '.join(told)}", "Done in ")
        finally:
            self.filling = self.button.disabled = self.what_if.disabled = False
            self._draw()

    # ---- showing ----

    def _say(self, text: str, label: str = "") -> None:
        self.status.value = f"<div role='status' aria-live='polite'><b>{label}</b>{html.escape(text)}</div>"

    def _draw(self) -> None:
        self.settings.show_chosen()
        self.panel.layout.display = "" if self.answer else "none"
        if self.answer is None:
            self.page.value = f"<div style='{LABEL}'>Choose whose history and which query, and press Answer.</div>"
            return
        style = _STALE if self.stale else ""
        self.page.value = f"<div style='{style}'>{answer_html(self.task, self.answer, self.anchor)}</div>"
        change = change_html(self.task, self.answer, self.changed) if self.changed else ""
        self.change.value = f"<div style='{'' if self._change_is_current() else _STALE}'>{change}</div>"

    def _change_is_current(self) -> bool:
        """Whether the rows are still those of the changed answer."""
        try:
            return self.changed is not None and not self.stale and self.rows.edited() == self.changed.rewrite.items
        except KitError:
            return False

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        return page_bundle(self.widget, self.page)


def playground(run: Run) -> PlaygroundPage:
    """The playground of a run; no model is loaded before the first answer."""
    return PlaygroundPage(Playground(run))


def sentence_of(error: Exception) -> str:
    """An error as a sentence that says what to do; a notebook is named where a command is."""
    if isinstance(error, KitError):
        return name_notebooks(str(error))
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", reason, re.IGNORECASE):
        return (
            f"The model does not fit into this machine's memory ({reason or 'MemoryError'}): close other notebooks, "
            "choose a smaller k, or open a run with a smaller model."
        )
    return f"This did not work ({type(error).__name__}: {reason}). What you entered is kept; change it and try again."
