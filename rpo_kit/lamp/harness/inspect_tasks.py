"""LaMP as an inspect-ai task package: `inspect eval rpo_kit/lamp7 --model …`, found by its entry point.

Parameters of each task (`-T name=value`), all optional:

    data        personas (default), official, or a folder with LaMP's files
    k           items in the prompt; 0 (default) is the base without personalization
    retriever   bm25 (default), recency, random, …
    split       dev (default) or train
    users       at most so many users
    profile     true sends each user's profile along, for the endpoint of `python -m rpo_kit serve`

The value of a sample is the kit's score (0..1): `mean` and `stderr`, clustered by user, are over it. LaMP's metrics are
over all answers, of every epoch. Only inspect-ai imports this module: the kit runs without that package.
"""

from __future__ import annotations

from collections.abc import Callable

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, mean, metric, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

from rpo_kit.lamp.harness.questions import (
    METRICS,
    Question,
    answered,
    corpus_metric,
    example_score,
    is_unreadable,
    questions,
)
from rpo_kit.lamp.tasks import get_task

# ---- tasks --------------------------------------------------------------------------------------------------------


def _lamp_task(lamp: str, name: str) -> Callable[..., Task]:
    @task(name=name)
    def build(
        data: str = "personas",
        k: int = 0,
        retriever: str = "bm25",
        split: str = "dev",
        users: int | None = None,
        profile: bool = False,
    ) -> Task:
        rows = questions(lamp, data, split, k, retriever, users, profile)
        return Task(
            dataset=MemoryDataset([_sample(row) for row in rows], name=lamp),
            solver=with_profile() if profile else generate(),
            scorer=lamp_answer(),
            metrics=_metrics(lamp),
        )

    return build


def _sample(row: Question) -> Sample:
    metadata = {name: value for name, value in row.items() if name in ("lamp", "user_id", "profile")}
    return Sample(input=row["prompt"], target=row["gold"], id=row["id"], metadata=metadata)


@solver
def with_profile() -> Solver:
    """Generate with the user's profile in the request, where the endpoint of `rpo_kit serve` looks for it."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        return await generate(state, extra_body={"profile": state.metadata.get("profile", [])})

    return solve


# ---- scorer and metrics ------------------------------------------------------------------------------------------


def _corpus_metric(name: str) -> Callable[[], Metric]:
    @metric(name=name, scores="unreduced")
    def build() -> Metric:
        def compute(scores: list[SampleScore]) -> float:
            return corpus_metric(name, [(score.score.metadata or {})["answered"] for score in scores])

        return compute

    return build


CORPUS = {name: _corpus_metric(name) for name in (*METRICS, "unreadable")}


def _metrics(lamp: str) -> list[Metric | dict[str, list[Metric]]]:
    """Mean and standard error of the kit's score, then LaMP's metrics for the task."""
    over_all = [CORPUS[name]() for name in (*get_task(lamp).metrics, "unreadable")]
    return [mean(), stderr(cluster="user_id"), *over_all]


@scorer(metrics=[mean(), stderr()])  # a task names its own
def lamp_answer() -> Scorer:
    """The kit's score of the answer, read by the kit's rules."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = answered(state.metadata["lamp"], target.text, state.output.completion)
        return Score(
            value=example_score(answer),
            answer=answer["prediction"],
            reason="invalid_response_format" if is_unreadable(answer) else None,
            metadata={"answered": answer},
        )

    return score


lamp1 = _lamp_task("LaMP-1", "lamp1")
lamp2 = _lamp_task("LaMP-2", "lamp2")
lamp2_news = _lamp_task("LaMP-2-news", "lamp2_news")
lamp3 = _lamp_task("LaMP-3", "lamp3")
lamp4 = _lamp_task("LaMP-4", "lamp4")
lamp5 = _lamp_task("LaMP-5", "lamp5")
lamp6 = _lamp_task("LaMP-6", "lamp6")
lamp7 = _lamp_task("LaMP-7", "lamp7")
