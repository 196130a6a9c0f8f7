"""The interactive parts of the notebooks: a live plot and three browsers.

Thin classes around the pure functions of `html.py` and `figures.py`. Nothing here trains, loads a model or uses pyplot.
Without a screen (papermill, the tests) everything works the same: set `.value`, call `.click()`, read `.page.value`.
A stored notebook that is viewed without widgets shows the first page of each browser.

    train_sft(run, live := live_plot(lambda rows: training_figure(rows, ["loss"]), run, "sft"))
    user_browser(load_prepared(run, "dev"), get_task("LaMP-3"))
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as w
from IPython.display import HTML, DisplayHandle, display
from matplotlib.figure import Figure

from rpo_kit.lamp.example import Example
from rpo_kit.lamp.tasks import Task
from rpo_kit.machine import describe_machine
from rpo_kit.provenance import package_versions
from rpo_kit.runs import Run
from rpo_kit.study.accessible import Picture, framed
from rpo_kit.study.alt_text import alt_text
from rpo_kit.study.figures import png, save
from rpo_kit.study.html import LABEL, TrajectoryRecord, page, retrieved_html, rollouts_html, trajectory_html
from rpo_kit.study.kernel import explain_errors
from rpo_kit.study.live_samples import BEGINNING, Progress, Samples, groups_of, label_html

if TYPE_CHECKING:
    from rpo_kit.training.rollouts import Rollout

RETRIEVERS = ("bm25", "recency", "random")  # those that need no model
VIEW = "application/vnd.jupyter.widget-view+json"
_DRAWING_SHARE = 0.05  # ours: drawing takes at most this share of the time

explain_errors()  # on import: a notebook opens its run, which may fail, before it calls anything of this module


# ---- the opening lines of a notebook, and pictures ------------------------------------------------------------------


def introduce(run: Run, minutes: Mapping[str, str]) -> None:
    """Print versions, machine, preset and the minutes that this notebook takes with each measured preset."""
    import torch  # noqa: F401  describe_machine sees the GPU once torch is imported

    installed = package_versions()
    versions = "  ".join(f"{name} {installed[name]}" for name in ("torch", "transformers", "trl", "peft", "unsloth"))
    preset = run.preset
    print(f"versions  Python {platform.python_version()}  {versions}")
    print(f"machine   {describe_machine()}")
    print(f"preset    {preset.name}: {preset.about}")
    print(f"run       {run.name}: {preset.data.task} from {preset.data.source}, in {os.path.relpath(run.folder)}")
    print(f"minutes   {minutes.get(preset.name, 'not measured for this preset')} (less if a stage is done already)")


def show(figure: Figure, keep_as: Path | None = None) -> Picture:
    """The figure as a picture in the notebook; `keep_as` also saves it, as `keep_as`.png and .svg."""
    if keep_as is not None:
        save(figure, keep_as.parent, keep_as.name)
    width = round(figure.get_figwidth() * 96)  # CSS: 96 pixels per inch, so that a point is a point
    return Picture(png(figure, dpi=150), width, alt_text(figure) or "a figure without a description")


class LivePlot:
    """A picture in the notebook that follows a training log; redrawn only as often as `_DRAWING_SHARE` allows. With a
    run and its stage also: a line above it, from the start, that says how far training is, and an example below it.
    """

    def __init__(
        self,
        draw: Callable[[list[dict[str, float]]], Figure],
        clock: Callable[[], float] = time.perf_counter,
        run: Run | None = None,
        stage: str = "",
    ) -> None:
        self.draw, self.clock = draw, clock
        self.frames, self.next_frame = 0, 0.0
        self.rows: list[dict[str, float]] = []
        self.stale = False
        self.handles: dict[str, DisplayHandle] = {}
        self.progress: Progress | None = None
        self.sample: Samples | None = None
        if run is not None:
            of = " of this trial" if stage in ("sweep", "components") else ""
            self.progress = Progress(getattr(run.preset, stage).steps, clock(), of)
            self.sample = Samples(run, stage) if stage != "components" else None  # its arms have data of their own
            self._show("status", page(label_html(BEGINNING)))

    def __call__(self, rows: list[dict[str, float]]) -> None:
        """Take the rows of the log so far (`runs.OnLog`)."""
        self.rows, self.stale = list(rows), True
        if self.progress:
            self._show("status", page(label_html(self.progress.after(int(rows[-1]["step"]), self.clock()))))
        if self.clock() >= self.next_frame:
            self._frame()

    def finish(self) -> None:
        """Draw the last rows, if they are not drawn yet, and say how long it took."""
        if self.stale:
            self._frame()
        if self.progress:
            self._show("status", page(label_html(self.progress.ended(self.clock()))))

    def _frame(self) -> None:
        start = self.clock()
        self._show("picture", show(self.draw(self.rows)))
        if self.sample:
            self._show("sample", page(self.sample(int(self.rows[-1]["step"]))))
        self.frames, self.stale = self.frames + 1, False
        self.next_frame = self.clock() + (self.clock() - start) / _DRAWING_SHARE

    def _show(self, name: str, content: Picture | HTML) -> None:
        """Show this part, in the place where it stood before."""
        if name in self.handles:
            self.handles[name].update(content)
        elif (handle := display(content, display_id=True)) is not None:
            self.handles[name] = handle


def live_plot(draw: Callable[[list[dict[str, float]]], Figure], run: Run | None = None, stage: str = "") -> LivePlot:
    """An `OnLog` that keeps one picture up to date while training runs; call `.finish()` after it."""
    return LivePlot(draw, run=run, stage=stage)


# ---- browsers -----------------------------------------------------------------------------------------------------


def page_bundle(widget: w.Widget, page: w.HTML) -> dict[str, object]:
    """What a notebook stores of a browser: the widget, and its current page for viewers without widgets.

    As ipywidgets 8 does in `Widget._repr_mimebundle_`, which ipywidgets 7, Colab's, does not have.
    """
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {VIEW: view, "text/html": page.value, "text/plain": "(a page to browse: open this notebook in JupyterLab)"}


class TrajectoryBrowser:
    """Page through trajectories: `group` chooses accepted ones or a reason for rejection, `number` the page."""

    def __init__(
        self, task: Task, accepted: Sequence[TrajectoryRecord], rejected: Sequence[TrajectoryRecord],
        examples: Sequence[Example],
    ) -> None:  # fmt: skip
        self.task, self.examples = task, {example["id"]: example for example in examples}
        self.groups = {f"accepted ({len(accepted)})": list(accepted)} if accepted else {}
        for reason, count in Counter(record["reason"] for record in rejected).most_common():
            self.groups[f"rejected: {reason} ({count})"] = [r for r in rejected if r["reason"] == reason]
        auto = {"style": {"description_width": "auto"}, "layout": w.Layout(width="auto")}
        self.group = w.Dropdown(options=list(self.groups), description="show", **auto)
        self.number = w.BoundedIntText(
            1, 1, max(1, len(self.records)), description="number", layout=w.Layout(width="11em")
        )
        self.previous = w.Button(description="previous")
        self.next = w.Button(description="next", button_style="primary")
        self.page = w.HTML()
        self.group.observe(lambda _: self._choose(), "value")
        self.number.observe(lambda _: self._draw(), "value")
        self.previous.on_click(lambda _: self._move(-1))
        self.next.on_click(lambda _: self._move(1))
        self.widget = framed(w.HBox([self.group, self.number, self.previous, self.next]), self.page)
        self._draw()

    @property
    def records(self) -> list[TrajectoryRecord]:
        return self.groups.get(self.group.value, [])

    def _choose(self) -> None:
        self.number.max = max(1, len(self.records))
        self.number.value = 1
        self._draw()

    def _move(self, by: int) -> None:
        self.number.value = min(max(1, self.number.value + by), self.number.max)

    def _draw(self) -> None:
        if not self.records:
            self.page.value = "<i>there are no trajectories yet</i>"
            return
        record = self.records[self.number.value - 1]
        count = f"<div style='{LABEL}'>{self.number.value} of {len(self.records)}</div>"
        self.page.value = count + trajectory_html(self.task, record, self.examples[record["example"]])

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        return page_bundle(self.widget, self.page)


def trajectory_browser(
    task: Task,
    accepted: Sequence[TrajectoryRecord],
    rejected: Sequence[TrajectoryRecord],
    examples: Sequence[Example],
) -> TrajectoryBrowser:
    """Accepted and rejected trajectories with the items shown to the teacher; `examples` are the train split."""
    return TrajectoryBrowser(task, accepted, rejected, examples)


class UserBrowser:
    """See which items of a user's history retrieval finds: choose `user`, `retrievers` (one or more) and `k`."""

    def __init__(self, examples: Sequence[Example], task: Task, k: int = 4) -> None:
        self.examples, self.task = list(examples), task
        long = {"description_width": "auto"}
        users = [(f"{e['user_id']} (example {e['id']})", index) for index, e in enumerate(self.examples)]
        self.user = w.Dropdown(options=users, description="user", style=long, layout=w.Layout(width="auto"))
        self.retrievers = w.SelectMultiple(options=RETRIEVERS, value=RETRIEVERS[:2], rows=3, description="retrievers")
        longest = max((len(example["profile"]) for example in self.examples), default=1)
        self.k = w.IntSlider(min(k, longest), 1, max(1, longest), description="k", style=long)
        self.page = w.HTML()
        for control in (self.user, self.retrievers, self.k):
            control.observe(lambda _: self._draw(), "value")
        self.widget = framed(w.HBox([self.user, self.retrievers, self.k]), self.page)
        self._draw()

    def _draw(self) -> None:
        if self.user.value is None or not self.retrievers.value:
            self.page.value = "<i>choose a user and at least one retriever</i>"
            return
        chosen = self.examples[self.user.value]
        self.page.value = retrieved_html(self.task, chosen, self.retrievers.value, self.k.value)

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        return page_bundle(self.widget, self.page)


def user_browser(examples: Sequence[Example], task: Task, k: int = 4) -> UserBrowser:
    """Choose a user, one or more retrievers and k; see the items side by side."""
    return UserBrowser(examples, task, k)


class RolloutBrowser:
    """See what RL sampled: choose `step` and `prompt` (its number in the step) to see its samples side by side."""

    def __init__(self, rollouts: Sequence[Rollout], examples: Sequence[Example], task: Task) -> None:
        self.task, self.examples = task, {example["id"]: example for example in examples}
        self.steps: dict[int, list[list[Rollout]]] = {}
        for group in groups_of(rollouts):  # in the order of training
            self.steps.setdefault(group[0]["step"], []).append(group)
        numbers = list(self.steps) or [0]
        self.step = w.SelectionSlider(options=numbers, value=numbers[0], description="step")
        self.prompt = w.BoundedIntText(
            1, 1, max(1, len(self.groups)), description="prompt", layout=w.Layout(width="11em")
        )
        self.page = w.HTML()
        self.step.observe(lambda _: self._choose(), "value")
        self.prompt.observe(lambda _: self._draw(), "value")
        self.widget = framed(w.HBox([self.step, self.prompt]), self.page)
        self._draw()

    @property
    def groups(self) -> list[list[Rollout]]:
        return self.steps.get(self.step.value, [])

    def _choose(self) -> None:
        self.prompt.max = max(1, len(self.groups))  # this also lowers a larger value
        self._draw()

    def _draw(self) -> None:
        if not self.groups:
            self.page.value = "<i>there are no rollouts yet</i>"
            return
        group = self.groups[self.prompt.value - 1]
        count = f"<div style='{LABEL}'>step {self.step.value}, prompt {self.prompt.value} of {len(self.groups)}</div>"
        self.page.value = count + rollouts_html(self.task, group, self.examples[group[0]["example"]])

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        return page_bundle(self.widget, self.page)


def rollout_browser(rollouts: Sequence[Rollout], examples: Sequence[Example], task: Task) -> RolloutBrowser:
    """Page through the lines of `rl/rollouts.jsonl`; `examples` are the train split."""
    return RolloutBrowser(rollouts, examples, task)
