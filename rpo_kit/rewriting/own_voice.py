"""Use a module that `mine` trained: a draft of any length in, the same in one's own voice out.

The draft is cut into passages as the texts were, because that is what the module was trained on. The base model sees
the passages of the draft and nothing of the person; the module sees the best-ranked passages of the person's history.

    voice = OwnVoice.of(existing_run("mine"))
    voice.rewrite("Hello everyone, I am going to be late tomorrow.").text         # "hey all, gonna be late tmrw"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts.lamp_files import ME, PROFILES, TASK
from rpo_kit.lamp.own_texts.passages import passages_of
from rpo_kit.lamp.tasks import Item, get_task
from rpo_kit.pipeline import current
from rpo_kit.rewriting.personalizer import Personalizer, Rewrite
from rpo_kit.runs import Run, read_json

FOLDER = "own_texts"  # in the run


@dataclass(frozen=True)
class Draft:
    """A draft in the person's voice: its passages as they were, and what was done for each."""

    before: Sequence[str]
    passages: Sequence[Rewrite]

    @property
    def text(self) -> str:
        """The rewrites. A passage without a usable one stays as it was: the draft says what the person means, which a
        small base model's answer may not.
        """
        pairs = zip(self.before, self.passages, strict=True)
        return "\n\n".join(before if why_left(passage) else passage.text for before, passage in pairs)

    @property
    def generic(self) -> str:
        """The same by the base model alone."""
        return "\n\n".join(passage.generic for passage in self.passages)


def why_left(passage: Rewrite) -> str:
    """Why a passage of a draft stays as it was; "" if it has a usable rewrite."""
    return passage.kept_generic or passage.parse_error or ""


class OwnVoice:
    """The personalizer of a run that `mine` made, with the person's profile."""

    def __init__(self, personalize: Personalizer, profile: Sequence[Item]) -> None:
        self.personalize, self.profile = personalize, profile

    @classmethod
    def of(cls, run: Run, stage: str = "", base: str | None = None) -> OwnVoice:
        """With the last stage that is trained, or `stage`. Raises KitError if the run is not of own texts."""
        profile = read_profile(run)
        return cls(Personalizer.of(run, stage or last_trained(run), base), profile)

    def rewrite(self, draft: str) -> Draft:
        """The draft in the person's voice, passage by passage. Raises KitError if there is nothing in it."""
        passages = passages_of(draft)
        if not passages:
            raise KitError("The draft is empty: give the text that is to be rewritten.")
        task = get_task(TASK)
        pairs = [(task.make_input(text=passage), self.profile) for passage in passages]
        return Draft(passages, list(self.personalize.each(pairs)))


def is_own(folder: Path) -> bool:
    """Whether the run in this folder is of own texts: `mine` made it, or it was forked from such a run."""
    stored = read_json(folder / "run.json")
    preset = stored.get("preset") if isinstance(stored, dict) else None
    data = preset.get("data") if isinstance(preset, dict) else None
    if not isinstance(data, dict) or data.get("task") != TASK:
        return (folder / FOLDER).is_dir()
    return Path(str(data.get("source", ""))).name == FOLDER


def read_profile(run: Run) -> list[Item]:
    """The person's profile. Raises KitError if the run is not of own texts, or they are gone."""
    if run.preset.data.task != TASK:
        raise KitError(
            f"The run {run.name!r} was not made of own texts: run `python -m rpo_kit mine FILE --run {run.name}-own`."
        )
    path = Path(run.preset.data.source) / PROFILES / f"{ME}.json"
    profile: list[Item] | None = read_json(path)
    if not profile:
        raise KitError(f"The texts of run {run.name!r} are gone: there is no {path}. Run `mine` again.")
    return profile


def last_trained(run: Run) -> str:
    """`rl` if it is finished and up to date, else `sft`."""
    try:
        current(run, "rl")
    except KitError:
        return "sft"
    return "rl"
