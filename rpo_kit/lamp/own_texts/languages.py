"""In which language a text probably is: by its script, and for Latin letters by its most frequent words.

>>> language_of("I would like to know when you are back")
'English'
>>> language_of("Ich weiß nicht, ob das mit dem Zug noch klappt")
'German'
>>> language_of("Спасибо, до завтра")
'Cyrillic script'
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

UNKNOWN = "too short to tell"
_WORDS = {  # frequent words that the other languages here do not have (ours)
    "English": "the and of to is are was you that this for with have not will be my your we would can it on they i'm "
    "it's just what there from at has but if when gonna i",
    "German": "und der die das ist nicht ich du wir mit auf für ein eine den dem zu noch auch aber wenn dass sich sind "
    "war wie bei nach von habe hat kann schon mal bitte",
    "French": "et le la les des est pas je tu nous vous avec pour une que qui dans sur mais sont c'est j'ai au aux du "
    "plus merci bonjour être très",
    "Spanish": "el los las es no que por para con una pero está son como más muy yo nos del al gracias hola también ya "
    "si lo se",
    "Italian": "il gli di è non che per con una ma sono come più molto io ci della nel grazie ciao anche già sei ho",
    "Portuguese": "o os as é não que por para com uma mas são como mais muito eu nós do da obrigado olá também já em",
    "Dutch": "de het een en van is niet ik je wij met voor op maar zijn was als ook nog naar bij heb heeft dat dit",
}
_SETS = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
SCRIPT = " script"  # ends what a text in another script than the Latin one is called
_FEWEST = 2  # ours: so many frequent words decide


def language_of(text: str) -> str:
    """The language, the script where it is not Latin, or `UNKNOWN`."""
    scripts = Counter(_script(letter) for letter in text[:2000] if letter.isalpha())
    if not scripts:
        return UNKNOWN
    script = scripts.most_common(1)[0][0]
    if script != "Latin":
        return f"{script}{SCRIPT}"
    words = Counter(word.replace("’", "'") for word in _WORD.findall(text[:5000].casefold()))
    scores = {name: sum(words[word] for word in known) for name, known in _SETS.items()}
    best, other = sorted(scores, key=lambda name: -scores[name])[:2]
    return best if scores[best] >= _FEWEST and scores[best] > scores[other] else UNKNOWN


def main_language(texts: Iterable[str]) -> str:
    """The language of most of an author's texts that are long enough to tell; `UNKNOWN` if none is.

    >>> main_language(["Ich weiß nicht, ob das mit dem Zug klappt", "ok, bis morgen", "ok"])
    'German'
    """
    counts = Counter(language_of(text) for text in texts)
    del counts[UNKNOWN]
    return counts.most_common(1)[0][0] if counts else UNKNOWN


def _script(letter: str) -> str:
    """The first word of a character's name: "Latin", "Cyrillic", "Cjk"."""
    return "Latin" if letter.isascii() else unicodedata.name(letter, "Unknown").split()[0].capitalize()
