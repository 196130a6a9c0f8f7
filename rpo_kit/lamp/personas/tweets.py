"""LaMP-7 users: how they tweet. A neutral sentence about a small mishap goes in, the user's own tweet comes out.

The query and the profile of Figure 1 for the tweet task. The query states three facts, each of them word for word: what
happened (`did`), `when`, and what the user did `then`. A voice uses two of them, in its own order, between its own
opening and closing words, and rewords them by a rule; so every single tweet shows it, and tweets in two voices share
few words. There are no hashtags, replies or links, and no user's voice depends on the mood.

    query  "On payday, I missed the last tram home, so I walked two miles in wet socks."
    grumpy "ugh missed last tram home on payday smh"
    joker  "lol walked two miles in wet socks cuz i missed the last tram home haha"
"""

import random

from rpo_kit.lamp.example import Facts
from rpo_kit.lamp.personas.frames import draw_parts, outline, topics
from rpo_kit.lamp.personas.grammar import expand, load_bank
from rpo_kit.lamp.tasks import Item, get_task

SHOWS = 0.8  # ours: one tweet in five is in another voice, so one item is not enough
VOICES = {
    "grumpy": "ugh {did} {when} smh",
    "bubbly": "omg {then} {when} xx",
    "joker": "lol {then} cuz i {did} haha",
    "chatty": "ok i {did} so {then} tbh",
    "diary": "diary: {when} i {did} sigh",
}
HABITS = tuple(VOICES)

# How a voice rewords the facts: a word on the left becomes the one on the right, "" is dropped.
REWORDS: dict[str, dict[str, str]] = {
    "grumpy": {"the": "", "a": "", "an": "", "my": ""},
    "joker": {"to": "2", "for": "4", "my": "me", "and": "n", "with": "w", "before": "b4", "you": "u"},
}

_BANK = load_bank("tweets")
_SCENES = topics(_BANK, "did")
_PARTS = ("did", "when", "then")


def make_item(rng: random.Random, habit: str) -> tuple[Item, Facts]:
    """A tweet in this voice, and the words it opens and ends with."""
    opens, ends = _frame(habit)
    happening: Facts = {**draw_parts(rng, _BANK, rng.choice(_SCENES), _PARTS)}
    return {"text": apply(habit, happening)}, {"opens": opens.strip(":"), "ends": ends}


def make_query(rng: random.Random, habit: str) -> tuple[str, str, Facts]:
    """The official input around a neutral sentence, the user's tweet, and the three parts of the sentence."""
    parts = draw_parts(rng, _BANK, rng.choice(_SCENES), _PARTS)
    facts: Facts = {**parts}
    return get_task("LaMP-7").make_input(text=expand(rng, _BANK, "{query}", parts)), apply(habit, facts), facts


def shown_habit(item: Item, facts: Facts) -> str | None:
    """The voice whose opening and closing words the tweet has; None if it has no voice's."""
    for habit in HABITS:
        opens, ends = _frame(habit)
        if item["text"].startswith(f"{opens} ") and item["text"].endswith(f" {ends}"):
            return habit
    return None


def apply(habit: str, query_facts: Facts) -> str:
    """The tweet: the voice's pattern, filled with its rewording of the parts; lower case throughout."""
    return VOICES[habit].format(**{key: reword(habit, str(part)) for key, part in query_facts.items()})


def reword(habit: str, part: str) -> str:
    """`part` in this voice, reworded word by word: reword("joker", "Begged for a lift") is "begged 4 a lift"."""
    table = REWORDS.get(habit, {})
    words = (table.get(word, word) for word in part.lower().split())
    return " ".join(word for word in words if word)


def observe(item: Item, facts: Facts) -> str:
    """How the tweet opens and ends, and whose voice that is: "opens ugh, ends smh: grumpy"."""
    return f"opens {facts['opens']}, ends {facts['ends']}: {shown_habit(item, facts)}"


def plan(habit: str, query_facts: Facts, generic: str) -> str:
    """The tweet to write in place of the generic one, in outline: "grumpy: ugh missed.. on.. smh"."""
    reworded: Facts = {key: reword(habit, str(part)) for key, part in query_facts.items()}
    return f"{habit}: {outline(VOICES[habit], reworded).removeprefix(f'{habit}: ')}"


def _frame(habit: str) -> tuple[str, str]:
    """The words before the first part and after the last one: ("ugh", "smh")."""
    pattern = VOICES[habit]
    return pattern[: pattern.index("{")].strip(), pattern[pattern.rindex("}") + 1 :].strip()
