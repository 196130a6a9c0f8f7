"""What can be checked in a short text: casing, length, end mark, spellings; in a fixed vocabulary.

`hindsight.py` observes these traits in history items, and plans from those in which the gold differs from the text
that it starts from. *One-of* traits (casing, end mark) have exactly one value per text; *marks* are there or not;
*spellings* are the informal words that a text uses.

    read_traits("@ann gonna be soooo late lol")
    # Traits(quote='gonna … lol', case='lower case', end='no end mark', words=6, opens='', marks=('@',), spellings=…)
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from difflib import SequenceMatcher

# Spellings and interjections of English tweets, in lower case (ours).
_INFORMAL = """
2day 2moro 2nite 4eva 4ever abt aint alot alright argh aw aww b4 bc bcuz bday bout bro bt btw cant cause cmon cos
coz cuz cya didnt dnt doesnt doin dont dunno eh gd goin gonna gosh gotta gr8 grr guna ha haha hahah hahaha heh hehe
hehehe hey hmm hun idk ikr ily im ima imma isnt ive jus k kinda kno l8r lil lmao lmfao lol lolz lookin luv m8 meh
mins morn mornin msg n nah nite nope nothin nvm oh ok okay omfg omg ooh oops ouch outta pic pics pls plz ppl prob
probs r rly rofl shoulda smh soo sorta srsly sux tbh tha thanx thats tho thru thx til tmr tmrw tonite txt u ugh ughh
ur wanna wasnt wat whoa wit wknd wont woo woot wow wtf x xo xoxo xx xxx y ya yall yay yea yeah yep yo yum yup
"""
_INFORMAL_WORDS = frozenset(_INFORMAL.split())
_STRETCHED = re.compile(r"([a-z])\1\1", re.IGNORECASE)  # soooo
_EMOTICON = re.compile(
    r"(?<![\w:])(?:[:;=8][-'o^]?[()\[\]dpo/\\|*3s]+|x[d)]|<3+|\^_*\^|[-=o]_+[-=o])(?!\w)", re.IGNORECASE
)
_EMOJI = re.compile("[\u2600-\u27bf\U0001f300-\U0001faff]")
_LINK = re.compile(r"(?:https?://|www\.)\S*[^\s.,;:!?…)\"'”’]", re.IGNORECASE)  # marks after it end the sentence
_MENTION, _HASHTAG = re.compile(r"@\w+"), re.compile(r"#\w*[a-z]\w*", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_END = re.compile(r"[.!?…。！？؟]+$")
_WIDE_MARKS = str.maketrans("。！？؟", ".!??")  # of Chinese, Japanese and Arabic
_CLOSING = " \"'”’)»"
_MARKS = {  # name of a mark: what a text with it contains
    "@": _MENTION,
    "#": _HASHTAG,
    "link": _LINK,
    ":)": _EMOTICON,
    "emoji": _EMOJI,
    "&": re.compile(r"(?<=\s)&(?=\s)"),
    "!": re.compile(r"!"),
    "!!": re.compile(r"!!"),
    "...": re.compile(r"\.\.|…"),
    "colon": re.compile(r"\w:\s"),
    "quotes": re.compile(r"[\"“”]|(?<!\w)'\w.*?\w'(?!\w)"),
    "number": re.compile(r"(?<![\w#@])\d+(?!\w)"),
}
MARKS = {  # which marks matter in which kind of text; those that say most about its writer first
    "tweet": (":)", "emoji", "...", "!!", "!", "#", "&", "link", "@"),
    "title": ("colon", "quotes", "number", "!", "..."),
}
_QUOTED = 20  # ours: letters of a word that are quoted at most
_SHORT_WORD = 4  # ours: letters up to which a title may keep a word in lower case, as in "War and Peace"


@dataclass(frozen=True)
class Traits:
    """What was found in a text.

    `quote` is its first word, mentions, hashtags and links aside, and its last one, links aside, as they stand there;
    `opens` is the first word of a title, "" for a tweet.
    """

    quote: str
    case: str
    end: str
    words: int
    opens: str
    marks: tuple[str, ...]
    spellings: tuple[str, ...]


def read_traits(text: str, kind: str = "tweet") -> Traits:
    """The traits of a text; `kind` is "tweet" or "title"."""
    plain = html.unescape(text).strip()  # LaMP's tweets contain &amp; and &lt;3
    own = _LINK.sub(" ", _HASHTAG.sub(" ", _MENTION.sub(" ", plain)))  # names and addresses are not the user's spelling
    words, written = _WORD.findall(own), _LINK.sub(" ", plain).split()
    return Traits(
        quote=_quote([*(words or written)[:1], *written[-1:]]),
        case=_case(words, kind),
        end=_end(" ".join(written)),
        words=len(plain.split()),
        opens=words[0] if words and kind == "title" else "",
        marks=tuple(name for name in MARKS[kind] if _MARKS[name].search(plain)),
        spellings=tuple(dict.fromkeys(filter(_is_informal, map(str.lower, words)))) if kind == "tweet" else (),
    )


def words_of(text: str) -> list[str]:
    """The words in lower case, names and hashtags included, links left out."""
    return [word.replace("’", "'").lower() for word in _WORD.findall(_LINK.sub(" ", html.unescape(text)))]


def names_of(text: str) -> set[str]:
    """The mentions, hashtags and links in lower case: what no plan can make up."""
    plain = html.unescape(text)
    found = [*_MENTION.findall(plain), *_HASHTAG.findall(plain), *_LINK.findall(plain)]
    return {name.lower() for name in found}


def kept_share(gold: str, *sources: str) -> float:
    """The share of the gold's words that a source has too; 0 for a gold without words."""
    known = {word for source in sources for word in words_of(source)}
    gold_words = words_of(gold)
    return sum(word in known for word in gold_words) / max(1, len(gold_words))


def squashed(word: str) -> str:
    """What two spellings of a word share: its letters and digits in lower case, each once where it is said again.

    >>> squashed("I'm"), squashed("SOOO"), squashed("@Ann,"), squashed(":)")
    ('im', 'so', '@an', ':)')
    """
    return re.sub(r"(.)\1+", r"\1", re.sub(r"[^\w@#]", "", word.lower())) or word


def spellings_of(text: str) -> set[str]:
    """The informal words and the hashtags of a text, `squashed`: what its writer may also write elsewhere."""
    words = html.unescape(text).split()
    return {squashed(word) for word in words if word.startswith("#") or _is_informal(re.sub(r"\W", "", word.lower()))}


def towards(source: str, gold: str, known: Set[str]) -> str:
    """The source, changed towards the gold with known words alone (`squashed`).

    Words of both are spelled and ordered as in the gold. Words that the gold does not have are left out, if nothing new
    stands in their place. What is new in the gold is taken if all its words are known; otherwise the source's stay.

    >>> towards("I'm going to be late, sorry.", "im gonna be sooo late lol", {"gona", "lol"})
    'im gonna be late lol'
    """
    old, new = source.split(), html.unescape(gold).split()
    aligned = SequenceMatcher(None, [squashed(word) for word in old], [squashed(word) for word in new], autojunk=False)
    words = []
    for change, start, end, first, last in aligned.get_opcodes():
        wanted = new[first:last]
        new_words = [squashed(word) for word in wanted if _WORD.search(word)]
        is_known = change == "equal" or all(word in known for word in new_words)
        words += wanted if is_known else old[start:end]
    return " ".join(words)


def _quote(ends: list[str]) -> str:
    """The first and the last word of a text, one if they are written alike, without the trajectory's brackets."""
    kept = [re.sub(r"[\[\]<>]", "", word)[:_QUOTED] for word in ends]
    return " … ".join(word for word in dict.fromkeys(kept) if word) or "no word"


def _case(words: Iterable[str], kind: str) -> str:
    letters = [word for word in words if word[0].isalpha()]
    if not letters:
        return "no words"
    if not any(word.lower() != word.upper() for word in letters):
        return "no case"  # Chinese, Arabic
    if all(word == word.lower() for word in letters):
        return "lower case"
    long = [word for word in letters if len(word) > 1]
    if len(long) > 1 and sum(word == word.upper() for word in long) * 2 > len(long):
        return "CAPITALS"
    long = [word for word in letters[1:] if len(word) > _SHORT_WORD]
    if kind == "title" and long and all(word[0].isupper() for word in long):
        return "Title Case"
    return "Sentence case" if letters[0][0].isupper() else "lower start"


def _end(text: str) -> str:
    found = _END.search(text.rstrip(_CLOSING))
    if not found:
        return "no end mark"
    marks = found[0].translate(_WIDE_MARKS).replace("…", "..")
    if {"?", "!"} <= set(marks):
        return "ends ?!"
    if marks.endswith(".."):
        return "ends ..."
    return f"ends {marks[-1] * 2 if marks.endswith(marks[-1] * 2) else marks[-1]}"


def _is_informal(word: str) -> bool:
    return word in _INFORMAL_WORDS or bool(_STRETCHED.search(word))
