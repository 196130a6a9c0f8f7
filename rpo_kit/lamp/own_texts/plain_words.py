"""A neutral version of an English text by rules: full words, full sentences, no moods.

For training pairs where the base model cannot write one: small models lose the content. The rules know common spellings
and fillers of informal texts, and leave every other word as it is. Other languages only lose marks and casing.

>>> plain_words("hey all, gonna be late tmrw cos the train is down again.. pls start without me :)")
'Hello all, I am going to be late tomorrow because the train is down again. Please start without me.'
"""

from __future__ import annotations

import re

from rpo_kit.lamp.own_texts.languages import UNKNOWN, language_of

_SPELLED = {
    "u": "you", "ur": "your", "r": "are", "b4": "before", "cos": "because",
    "coz": "because", "cuz": "because", "bc": "because", "tmrw": "tomorrow", "tmr": "tomorrow", "2moro": "tomorrow",
    "2nite": "tonight", "tonite": "tonight", "thx": "thank you", "thanx": "thank you", "thanks": "thank you",
    "ta": "thank you", "pls": "please", "plz": "please", "gonna": "going to", "wanna": "want to", "gotta": "have to",
    "kinda": "rather", "sorta": "rather", "dunno": "do not know", "lemme": "let me", "gimme": "give me",
    "im": "I am", "ive": "I have", "dont": "do not", "doesnt": "does not",
    "didnt": "did not", "cant": "cannot", "wont": "will not", "isnt": "is not", "wasnt": "was not",
    "couldnt": "could not", "shouldnt": "should not", "thats": "that is", "whats": "what is",
    "ppl": "people", "msg": "message", "mtg": "meeting", "info": "information", "asap": "as soon as possible",
    "btw": "by the way", "fyi": "for your information", "imo": "in my opinion", "imho": "in my opinion",
    "yeah": "yes", "yep": "yes", "yup": "yes", "nah": "no", "nope": "no", "ok": "all right", "okay": "all right",
    "hey": "hello", "hi": "hello", "hiya": "hello", "heya": "hello", "cheers": "thank you", "folks": "everyone",
    "guys": "everyone", "reckon": "think", "thurs": "Thursday", "thru": "through", "tho": "though",
    "abt": "about", "til": "until", "mins": "minutes", "hrs": "hours", "pic": "picture", "pics": "pictures",
    "loads": "many", "rly": "really", "bday": "birthday",
}  # fmt: skip
_FILLER_WORDS = "lol haha hahaha hehe lmao rofl omg ugh argh tbh ngl smh xx xxx xo xoxo"
_FILLERS = frozenset(_FILLER_WORDS.split())
_CONTRACTED = (
    (r"(^|[.!?,]\s+)ill\b", r"\1I will"), (r"(^|[.!?,]\s+)id\b", r"\1I would"),  # elsewhere they are other words
    (r"\b(I)['’]m\b", r"\1 am"), (r"\bwon['’]t\b", "will not"), (r"\bcan['’]t\b", "cannot"),
    (r"\bshan['’]t\b", "shall not"), (r"\bain['’]t\b", "is not"),
    (r"\b(\w+)n['’]t\b", r"\1 not"), (r"\b(\w+)['’]re\b", r"\1 are"), (r"\b(\w+)['’]ve\b", r"\1 have"),
    (r"\b(\w+)['’]ll\b", r"\1 will"), (r"\b(I|you|we|they|he|she)['’]d\b", r"\1 would"),
    (r"\b(it|that|he|she|there|what|here|who)['’]s\b", r"\1 is"), (r"\blet['’]s\b", "let us"),
)  # fmt: skip
_EMOTICON = re.compile(r"(?<![\w:])(?:[:;=8][-'o^]?[()\[\]dpDP/\\|*3]+|<3+|\^_*\^)(?!\w)")
_EMOJI = re.compile("[\u2600-\u27bf\u200d\u20e3\ufe0f\U0001f000-\U0001faff]")
_NO_SUBJECT = re.compile(r"(?i)(^|[.!?,]\s+)(?=(?:going to|want to|have to|do not know|will let|cannot|got|had) )")
_LETTERS, _FOREIGN = re.compile(r"[^\W\d_]+"), 0.05  # ours: share of words with other letters than English ones
_SENTENCE = re.compile(r"(^|[.!?]\s+)([a-zà-ÿ])")
_DAYS = re.compile(
    r"(?i)\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|april|june|july|august|"
    r"september|october|november|december)\b"
)


def plain_words(text: str, authors_language: str = UNKNOWN) -> str:
    """The neutral version, in one line; the text itself if nothing in it is informal.

    `authors_language` is that of a text which is too short to tell (`languages.main_language`).
    """
    plain = _plain_marks(text)
    if _may_be_english(text, authors_language):
        plain = _english(plain)
    plain = _SENTENCE.sub(lambda match: match[1] + match[2].upper(), _tidy(plain))
    return plain if not plain or plain[-1] in ".?!:" else f"{plain}."


def _may_be_english(text: str, authors_language: str) -> bool:
    """Not if many words have letters that English lacks: to a short list of frequent words, Polish looks English."""
    words = _LETTERS.findall(text)
    foreign = sum(not word.isascii() for word in words)
    language = language_of(text)
    language = authors_language if language == UNKNOWN else language
    return foreign <= _FOREIGN * len(words) and language in ("English", UNKNOWN)


def _plain_marks(text: str) -> str:
    """Without emoji and emoticons, with single marks, and without stretched words."""
    plain = _EMOJI.sub("", _EMOTICON.sub("", " ".join(text.split())))
    plain = re.sub(r"\s*(?:\.{2,}|…)\s*(?=\S)", ". ", plain)
    plain = re.sub(r"\.{2,}|…", ".", re.sub(r"!+", ".", re.sub(r"\?[?!]+", "?", plain)))
    return re.sub(r"([^\W\d_])\1{3,}", r"\1", plain)


def _english(text: str) -> str:
    """With full words and subjects, without fillers; names of days and months with a capital."""
    plain = re.sub(r"\bi\b(?!\.)", "I", re.sub(r"(?<=\s)&(?=\s)", "and", text))
    for pattern, full in _CONTRACTED:
        plain = re.sub(pattern, full, plain, flags=re.IGNORECASE)
    plain = _without_fillers(re.sub(r"[^\W_]+", _full_word, plain))
    plain = _NO_SUBJECT.sub(lambda match: f"{match[1]}I {_am(plain, match.end())}", plain)
    return _DAYS.sub(lambda match: match[0].capitalize(), plain)


def _full_word(match: re.Match[str]) -> str:
    word = match[0]
    full = _SPELLED.get(word.lower()) if word != "I" else None
    if full is None:
        return word.capitalize() if word.isupper() and len(word) > 5 else word
    return full.capitalize() if word[0].isupper() and full[0].islower() else full


def _without_fillers(text: str) -> str:
    return re.sub(r"[^\W_]+", lambda match: "" if match[0].lower() in _FILLERS else match[0], text)


def _am(text: str, position: int) -> str:
    return "am " if text[position:].lower().startswith("going to") else ""


def _tidy(text: str) -> str:
    """One blank between words, none before a mark, and no mark twice."""
    text = re.sub(r"\s+([.,;:?!])", r"\1", " ".join(text.split()))
    text = re.sub(r"([.?!])[.,;:]+", r"\1", re.sub(r",+([.,;:?!])", r"\1", text))
    return re.sub(r"^[\s.,;:!]+", "", text).rstrip(" ,;")
