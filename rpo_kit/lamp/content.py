"""How much content survives a rewrite: content words, numbers, names and negations, and how much of the text changed.

The abstract of the paper separates content, which is the base model's, from style, which is the module's. ROUGE with
the gold measures both at once; this measures content alone, without a model, for the tasks whose answers are texts.

    content_kept("We missed the last tram, so Ann walked 2 miles.", "ugh missed last tram.. walked two miles smh")
    # share 0.86: of miss, last, tram, Ann, walk, mile and 2, all but Ann; names 0.0, numbers 1.0

A *unit* is a distinct content word or number of a text, or the fact that it negates. Words are compared without case,
endings and repeated letters ("sooo happyyy"), numbers in digits or in words (25, twenty-five; 200, two hundred). A dot
or comma before three digits marks thousands, any other one the decimals. Stop words are no content, so that spellings
such as 2 (to), n (and) or w (with) lose nothing. Not seen: synonyms, irregular forms ("burnt", "burned"), and a change
of meaning that keeps the words.

What a rewrite should keep is the generic answer's content. But a weak base model loses some of the query's, which the
module then takes from the query itself. So `rewrite_content` compares with both and returns the larger share. (An
empty generic answer has nothing to keep, so the query alone counts.)
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_UNITS = "k|m|mn|bn|b|tn|km|cm|mm|mi|ft|in|kg|g|lb|lbs|oz|l|ml|gb|mb|tb|mph|kmh|am|pm|h|hr|hrs|min|mins|s|sec|x|p|c|f"
_NUMBER = rf"(?>\d+(?:[.,:]\d+)*)(?!(?!(?i:{_UNITS})\b)\w)"  # also where a unit follows at once, as in 1.5bn
# Scripts without spaces between words (Thai, Lao, Burmese, Khmer, Japanese, Chinese): each character is a word.
_UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
_LETTER = rf"(?:(?!{_UNSPACED})[\w\u0900-\u0963\u0966-\u0dff])"  # with the vowel signs of Indian scripts
_WORD = re.compile(rf"{_NUMBER}|\d+(?:[.,:]\d+)*{_LETTER}+|{_UNSPACED}|{_LETTER}+(?:['’]{_LETTER}+)*")
_APOSTROPHES = str.maketrans("’‘´`ʼ＇", "'" * 6)
_SENTENCE_END = re.compile(r"[.!?:…\"“”]\s*$")

_STOP_WORDS = (
    "a about above after again ago all also am an and any are as at be because been before being below between both "
    "but by can could did do does doing down during each else ever every few for from further get gets getting go goes "
    "going got had has have having he her here hers herself him himself his how i if in into is it its itself just let "
    "like me more most much must my myself of off on once one only or other our ours out over own rather really same "
    "shall she should so some still such than that the their theirs them then there these they thing this those though "
    "through to too under until up us very was we were what when where which while who whom whose why will with would "
    "yet you your yours im ive id ill youre hes shes theyre thats "
    # spellings and fillers of informal texts
    "n w u r b b4 cuz coz cos bc tho thru ur ya yall da dat dis tbh lol haha omg ugh smh xx ok okay rt amp "
    "gonna wanna gotta s t m d ll re ve"
)
_STOP = frozenset(_STOP_WORDS.split())
_NEGATING = "no nope not never none nothing nobody nowhere nor neither cannot without"
_NEGATIONS = frozenset(_NEGATING.split())
_NEGATED = re.compile(
    r"(?:is|are|was|were|do|does|did|have|has|had|ca|could|wo|would|should|must|need|ai|sha|might|ought|dare)n'?t"
)
# "_": one, which is seldom 1
_SMALL = "zero _ two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_DIGITS = {word: n for n, word in enumerate(["one", *_SMALL.split()[2:10]], 1)}
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: str(10 * n) for n, word in enumerate(_TENS_WORDS.split(), 2)}
_NUMBER_WORDS = {word: str(n) for n, word in enumerate(f"{_SMALL} eighteen nineteen".split()) if word != "_"} | _TENS
_POWERS = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_SUFFIXES = {"k": 1_000, "mn": 1_000_000, "bn": 1_000_000_000}  # as in 10k
_NAMES = frozenset({"US", "IT", "WHO"})  # stop words otherwise
_THOUSANDS = re.compile(r"(?<!\S)[1-9]\d{0,2}(?P<mark>[.,])\d{3}(?:(?P=mark)\d{3})*(?!\d)")
_PLAIN = re.compile(r"\d+(?:\.\d+)?")
_STRETCHED = re.compile(r"(.)\1{2,}")
_SOUNDS_LIKE = {"1": ("one",), "2": ("to", "too"), "4": ("for",)}  # as in "gone 2 work"
_ENDINGS = (("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("e", ""))
NEGATION = "¬"  # no stem: that of "notes" is "not"


@dataclass(frozen=True)
class ContentKept:
    """What survived: shares in 0..1. Those of a kind of unit are None if the first text has none of it."""

    share: float  # of all units; 1 if there is none, so that nothing could be lost
    words: float | None  # names included
    numbers: float | None
    names: float | None  # words with a capital inside a sentence
    negation: float | None  # 1 if both texts negate
    changed: float  # share of the words changed: 1 - words in common / words of the longer text
    units: int  # of the first text
    lost: tuple[str, ...]  # words and numbers of the first text that are gone, in their order


@dataclass(frozen=True)
class _Text:
    words: dict[str, str]  # the stem of each content word: how it is first written
    numbers: dict[str, str]
    names: set[str]  # stems
    negates: bool
    spelled: Counter[str]  # all words, without case

    @property
    def units(self) -> set[str]:
        return {*self.words, *self.numbers, *([NEGATION] if self.negates else [])}


def content_kept(before: str, after: str) -> ContentKept:
    """How much of the content of `before` is in `after`. Never raises; takes time proportional to the words."""
    return _compare(_read(before), _read(after))


def rewrite_content(generic: str, query: str, rewrite: str) -> ContentKept:
    """What the rewrite keeps of the generic answer or of the query, whichever is more; never raises."""
    new = _read(rewrite)
    of_query, of_generic = (_compare(_read(text), new) for text in (query, generic))
    return of_generic if of_generic.units and of_generic.share >= of_query.share else of_query


def units(text: str) -> set[str]:
    """The units of a text: stems, numbers in digits, and `NEGATION` if it negates."""
    return _read(text).units


def _compare(old: _Text, new: _Text) -> ContentKept:
    words = {stem: stem in new.words for stem in old.words}
    numbers = {number: _has_number(number, old, new) for number in old.numbers}
    negation = [new.negates] if old.negates else []
    longer = max(old.spelled.total(), new.spelled.total())
    common = (old.spelled & new.spelled).total()
    return ContentKept(
        share=_share([*words.values(), *numbers.values(), *negation], 1.0) or 0.0,
        words=_share(words.values()),
        numbers=_share(numbers.values()),
        names=_share(stem in new.words for stem in old.names),
        negation=_share(negation),
        changed=1 - common / longer if longer else 0.0,
        units=len(old.units),
        lost=tuple((old.words | old.numbers)[unit] for unit, kept in (words | numbers).items() if not kept),
    )


def _share(kept: Iterable[bool], of_none: float | None = None) -> float | None:
    values = list(kept)
    return sum(values) / len(values) if values else of_none


def _has_number(number: str, old: _Text, new: _Text) -> bool:
    """Whether the number is there or, where it stood for a word ("gone 2 work"), one more of that word."""
    sounds = _SOUNDS_LIKE.get(number, ())
    return number in new.numbers or any(new.spelled[word] > old.spelled[word] for word in sounds)


def _read(text: str) -> _Text:
    found = _Text({}, {}, set(), False, Counter())
    inside: list[tuple[bool, str]] = []  # content words inside sentences: (has a capital, stem)
    numbers: list[_Number] = []
    negates, end = False, 0
    text = unicodedata.normalize("NFC", html.unescape(text)).translate(_APOSTROPHES)
    shouted = text == text.upper()
    for match in _WORD.finditer(text):
        starts, end = end == 0 or bool(_SENTENCE_END.search(text, end, match.start())), match.end()
        word = match[0].casefold().strip("_")
        if not word:
            continue
        found.spelled[word] += 1
        spellings = {word, _STRETCHED.sub(r"\1", word), _STRETCHED.sub(r"\1\1", word)}  # alll: al, all
        if not _NEGATIONS.isdisjoint(spellings) or _NEGATED.fullmatch(word):
            negates = True
        elif _add_number(numbers, word, text, match):
            continue
        elif _STOP.isdisjoint(map(_bare, spellings)) or (match[0] in _NAMES and not shouted):
            found.words.setdefault(stem := _stem(_bare(word)), match[0])
            if not starts:
                inside.append((match[0][0].isupper(), stem))
    if 2 * sum(capital for capital, _ in inside) <= len(inside):  # otherwise it is in title case or in capitals
        found.names.update(stem for capital, stem in inside if capital)
    for number in numbers:
        found.numbers.setdefault(number.value, text[number.start : number.end])
    return _Text(found.words, found.numbers, found.names, negates, found.spelled)


@dataclass(frozen=True)
class _Number:
    value: str  # in digits
    start: int
    end: int


def _add_number(numbers: list[_Number], word: str, text: str, match: re.Match[str]) -> bool:
    """Whether the word is a number or completes the one just before it ("twenty-five", "3 million"); added then."""
    before, value = numbers[-1] if numbers else None, _number(word)
    between = text[before.end : match.start()].casefold() if before else ""
    last = re.split(r"[\s-]", text[before.start : before.end].casefold())[-1] if before else ""
    power = _POWERS.get(word) or (_SUFFIXES.get(word) if not between or word != "k" else None)
    if before and power and not between.strip(" -") and _PLAIN.fullmatch(before.value):
        value = f"{float(before.value) * power:.0f}"
    elif before and word in _DIGITS and last in _TENS and not between.strip(" -"):
        value = str(int(before.value) + _DIGITS[word])
    elif before and word in _NUMBER_WORDS and last == "hundred" and between.strip(" -") in ("", "and"):
        value = str(int(before.value) + int(_NUMBER_WORDS[word]))
    else:
        before = None
    if value is None:
        return False
    if before:
        numbers.pop()
    numbers.append(_Number(value, before.start if before else match.start(), match.end()))
    return True


def _number(word: str) -> str | None:
    """The number that a word is, in digits without separators; None for other words."""
    if word in _POWERS:
        return str(_POWERS[word])
    if not word[0].isdigit() or any(character.isalpha() for character in word):
        return _NUMBER_WORDS.get(word)
    whole, _, decimals = _THOUSANDS.sub(_without_marks, word).replace(",", ".").partition(".")
    decimals = decimals.rstrip("0") if decimals.isdigit() else decimals
    return f"{whole}.{decimals}" if decimals else whole.removesuffix(":00")


def _without_marks(match: re.Match[str]) -> str:
    return match[0].replace(match["mark"], "")


def _bare(word: str) -> str:
    return word.removesuffix("'s").replace("'", "")


def _stem(word: str) -> str:
    """The word without a common ending and without repeated letters: misses, missed, missing and miss are "mi"."""
    word = _STRETCHED.sub(r"\1", word)
    word = re.sub(r"([^se])\1+", r"\1", word)
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) > 1:
            word = word.removesuffix(ending) + instead
            break
    word = re.sub(r"(?<=..)(s+|e+)$", "", word)
    return re.sub(r"(.)\1+", r"\1", re.sub(r"(?<=..)y$", "i", word))
