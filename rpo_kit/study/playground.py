"""The whole way from a query to a rewrite, for notebook 08: any user, any items, and what would happen without one.

The logic without widgets: a `State` is what the page's controls say, a `Question` what the models are asked, an
`Answer` what came of it, judged where the gold is known. The base model and the reflection module are loaded when they
are first needed and kept; another stage only switches the adapter (`kept_models.py`). `playground_html.py` shows
answers, `playground_widgets.py` has the controls.

    play = Playground(existing_run("demo"))
    answer = play.answer(play.question(play.first_state()))
    answer.rewrite.text                                     # 'omg hid in a museum and read leaflets xx'
    play.answer_from(answer.question, answer.rewrite.items[1:]).rewrite.text           # the same without the first item
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.lamp import personas
from rpo_kit.lamp.example import Example, UserFacts
from rpo_kit.lamp.item import item_gold
from rpo_kit.lamp.metrics import example_scores, lamp_metrics, scorable
from rpo_kit.lamp.tasks import Item, Task, get_task
from rpo_kit.models.chat import Chat
from rpo_kit.models.open import open_chat_for
from rpo_kit.presets import ModelSettings
from rpo_kit.rewriting.faithfulness import Checked, Truth, check, truth_of
from rpo_kit.rewriting.personalizer import Personalizer, Rewrite, trained_adapter
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import Run, read_records
from rpo_kit.study.kept_models import KeptModule, RememberingChat, check_fits
from rpo_kit.study.playground_state import MOST_ITEMS, SOURCES, STAGES, State, read_state
from rpo_kit.study.typed_items import items_of
from rpo_kit.training.rewards import Judged, judge

_USERS, _PERSONAS = 200, 24  # ours: dev users, and invented users, that can be chosen


@dataclass(frozen=True)
class Question:
    """What the models are asked."""

    input: str  # LaMP's
    profile: Sequence[Item]
    k: int
    retriever: str
    stage: str
    temperature: float = 0.0
    draw: int = 0
    gold: str = ""
    facts: UserFacts = field(default_factory=UserFacts)  # what is known about an invented user; else empty
    who: str = ""


@dataclass(frozen=True)
class Answer:
    """What the models wrote, and what it is worth where the gold is known."""

    question: Question
    rewrite: Rewrite
    judged: Judged | None  # the completion, as RL rewards it
    scores: dict[str, tuple[float, float]]  # {metric: (of the generic answer, of the answer used)}
    truth: Truth | None  # about the items; for invented users
    checked: Checked | None  # the observations against it


class Playground:
    """A run's users, models and settings, asked one question at a time."""

    def __init__(self, run: Run) -> None:
        self.run, self.task = run, get_task(run.preset.data.task)
        self.missing = ""  # why there are no users of the run
        self.users: dict[str, Example] = {}
        try:
            self.users = {example["id"]: example for example in load_prepared(run, "dev")[:_USERS]}
        except KitError as error:
            self.missing = str(error)
        self.personas = {example["id"]: example for example in invented_users(run)}
        self.base: Chat = RememberingChat(lambda: open_base(run), self._known_answers())
        self.module = KeptModule(run.preset.reflection, lambda stage: trained_adapter(run, stage))

    def _known_answers(self) -> dict[str, str]:
        """{input: the base model's reply} for the run's users, whom `prepare` has asked already."""
        records = read_records(self.run.stage("prepare") / "generic.jsonl") if self.users else []
        return {self.users[r["id"]]["input"]: r["raw"] for r in records if r["id"] in self.users}

    @property
    def examples(self) -> dict[str, Example]:
        """All users whose query can be chosen, by example id."""
        return self.users | self.personas

    # ---- questions and answers ----

    def question(self, state: State) -> Question:
        """What this state asks. Raises KitError: an own item or the query is not of the task's form."""
        chosen = self._user(state)
        if chosen is None and state.source != "own":
            raise KitError(self.missing or "There is no such user: choose another one.")
        empty = [name for name in self.task.parts if not state.parts.get(name, "").strip()]
        if empty:
            raise KitError(f"The query has no {', '.join(empty)}: write one, or choose a user's query.")
        asked = self.examples.get(state.asked)
        if asked and self.parts_of(asked) != state.parts:
            asked = None
        parts = {name: state.parts[name] for name in self.task.parts}
        input = asked["input"] if asked else self.task.make_input(**parts)
        profile = list(chosen["profile"]) if chosen else items_of(self.task, state.items)
        facts = known_facts(chosen, asked)
        settings = (state.k, state.retriever, state.stage, state.temperature, state.draw)
        who = chosen["user_id"] if chosen else "own items"
        return Question(input, profile, *settings, self._read_gold(state.gold), facts, who)

    def _user(self, state: State) -> Example | None:
        """Whose history it is; None for items that were typed in."""
        return {"run": self.users.get(state.user), "persona": self.personas.get(state.persona)}.get(state.source)

    def parts_of(self, example: Example) -> dict[str, str]:
        """The parts of the example's query, as one would type them."""
        return {name: text.strip() for name, text in self.task.query_parts(example["input"]).items()}

    def answer(self, question: Question) -> Answer:
        """Retrieval, generic answer and rewrite. Raises KitError: an adapter or a model is missing, or does not fit."""
        return self._answered(question, lambda personalize: personalize(question.input, question.profile))

    def answer_from(self, question: Question, items: Sequence[Item]) -> Answer:
        """The answer from exactly these items in this order, whatever the retriever would choose."""
        own = {item["id"]: item for item in question.profile}
        known = question.facts.get("items", {})
        facts = {id_: known[id_] for id_ in known if own.get(id_) in items}  # of an edited item nothing is known
        changed = replace(question, facts=question.facts | {"items": facts}) if known else question
        return self._answered(changed, lambda personalize: personalize.from_items(question.input, items))

    def _answered(self, question: Question, ask: Callable[[Personalizer], Rewrite]) -> Answer:
        import torch

        personalize = self.personalizer(question)
        with torch.random.fork_rng():
            torch.manual_seed(question.draw)
            rewrite = ask(personalize)
        return self._judged(question, rewrite)

    def personalizer(self, question: Question) -> Personalizer:
        """The run's personalizer with the models that are kept and the settings of this question."""
        personalize = Personalizer.with_models(self.run, self.base, self.module.at(question.stage))
        personalize.shots, personalize.retriever = question.k, question.retriever
        personalize.temperature = question.temperature
        return personalize

    def _judged(self, question: Question, rewrite: Rewrite) -> Answer:
        sections, shown = self.run.preset.reflection.sections, len(rewrite.items)
        example: Any = {"input": question.input, "facts": question.facts}
        truth = truth_of(self.task, example, rewrite.items) if question.facts and shown else None
        checked = check(rewrite.completion, truth, shown, sections) if truth else None
        if not question.gold:
            return Answer(question, rewrite, None, {}, truth, checked)
        rl, query = self.run.preset.rl, self.task.query_text(question.input)
        weights = (rl.format_weight, rl.content_weight, rewrite.generic, query, sections)
        judged = judge(self.task, rewrite.completion, question.gold, shown, *weights)
        return Answer(question, rewrite, judged, scores_of(self.task, question.gold, rewrite), truth, checked)

    def _read_gold(self, gold: str) -> str:
        """The gold as LaMP writes it; "" if there is none. Raises KitError: it is not one of the task's labels."""
        if not gold.strip() or self.task.kind == "generation":
            return gold.strip()
        known = item_gold(self.task, {self.task.gold_field: gold.strip()})
        if known is None:
            labels = ", ".join(self.task.labels)
            raise KitError(f"The gold is {gold[:40]!r}: write one of {labels}, or leave it empty if it is unknown.")
        return known

    def gold_for(self, state: State) -> str:
        """The gold of the chosen user for the chosen query; "" if it is unknown.

        An invented user's answer to any invented query is known: the habit decides it.
        """
        user, asked = self._user(state), self.examples.get(state.asked)
        if user is None or asked is None:
            return ""
        if user["id"] == asked["id"]:
            return user["output"]
        facts = known_facts(user, asked)
        return personas.persona(self.task.name).apply(facts["habit"]["name"], facts["query"]) if facts else ""

    # ---- the state ----

    def first_state(self) -> State:
        """Where a new page begins: with a dev user whom the module helps, the last stage that is trained, and its k."""
        preset = self.run.preset
        trained = [name for name in ("rl", "sft") if (self.run.stage(name) / "manifest.json").exists()]
        user, persona = helped_user(self.run, self.task, list(self.users.values())), next(iter(self.personas), "")
        source = "run" if user else "persona" if persona else "own"
        k, stage = min(max(preset.evaluation.shots, 1), MOST_ITEMS), [*trained, "untrained"][0]
        state = State(source, user, persona, k=k, retriever=preset.data.retriever, stage=stage)
        return self.asking(state, user or persona)

    def asking(self, state: State, id: str) -> State:
        """The state with the query of another example and its gold; with the words typed in last for ""."""
        asked = self.examples.get(id)
        if asked is None:
            return replace(state, asked="", parts=state.words or state.parts, gold="")
        state = replace(state, asked=id, parts=self.parts_of(asked))
        return replace(state, gold=self.gold_for(state))

    @property
    def retrievers(self) -> list[str]:
        """Those that need no model, and the run's own."""
        return list(dict.fromkeys(["bm25", "recency", "random", self.run.preset.data.retriever]))

    @property
    def file(self) -> Path:
        """Where the state is kept."""
        return self.run.folder / "playground.json"

    def load(self) -> State:
        """The state that was kept; what is missing in it, or no longer possible, is as on a new page."""
        choices = {"source": SOURCES, "stage": STAGES, "retriever": self.retrievers}
        choices |= {"user": self.users, "persona": self.personas, "asked": [*self.examples, ""]}
        return read_state(self.file, self.first_state(), choices)


def open_base(run: Run) -> Chat:
    """The run's base model. Raises KitError: it does not fit into memory, or cannot be opened."""
    kind, _, name = run.preset.base.partition(":")
    if kind == "local":
        check_fits(ModelSettings(name, load_in_4bit=False))
    return open_chat_for(run, run.preset.base)


def invented_users(run: Run) -> list[Example]:
    """Users of the embedded benchmark whom no stage of a run reads; none for a task without personas."""
    if run.preset.data.task not in personas.MODULES:
        return []
    settings = run.preset.data
    size = {"items_per_user": settings.items_per_user, "seed": settings.seed}
    return list(personas.build(settings.task, "test", _PERSONAS, **size))


def known_facts(user: Example | None, asked: Example | None) -> UserFacts:
    """What is known of an invented user's habit and items, and of the query; empty if any of it is not."""
    own, other = (example.get("facts") if example else None for example in (user, asked))
    if not own or not other:
        return {}
    return {"habit": own["habit"], "items": own["items"], "query": other["query"]}


def helped_user(run: Run, task: Task, examples: Sequence[Example]) -> str:
    """The id of the first example whose stored rewrite after RL is better than its generic answer, else of the first
    example; "" if there is none.
    """
    records = {r["id"]: r.get("prediction", "") for r in read_records(run.stage("evaluate") / "records" / "rl.jsonl")}
    for example in examples:
        if example["id"] in records:
            answers = [scorable(task, text) for text in (example["generic"], records[example["id"]])]
            generic, rewrite = example_scores(task, [example["output"]] * 2, answers)
            if rewrite > generic:
                return example["id"]
    return examples[0]["id"] if examples else ""


def scores_of(task: Task, gold: str, rewrite: Rewrite) -> dict[str, tuple[float, float]]:
    """The kit's score and the task's own metrics, of the generic answer and of the answer used."""
    texts = [scorable(task, text) for text in (rewrite.generic, rewrite.text)]
    generic, used = example_scores(task, [gold, gold], texts)
    scores = {"score": (float(generic), float(used))}
    for name in task.metrics if task.kind == "generation" else task.metrics[:1]:  # F1 or RMSE of one answer say no more
        scores[name] = tuple(lamp_metrics(task, [gold], [text])[name] for text in texts)  # type: ignore[assignment]
    return scores
