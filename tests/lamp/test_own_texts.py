"""A person's texts are read from any common file, cleaned, split by time, checked for leaks; what goes is counted."""

from __future__ import annotations

import json
import random

import pytest
from own_mailbox import ME, voice, write_mailbox

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts import mail_body
from rpo_kit.lamp.own_texts.cleaning import Choice, cleaned
from rpo_kit.lamp.own_texts.columns import Columns
from rpo_kit.lamp.own_texts.files import Options, read_own
from rpo_kit.lamp.own_texts.lamp_files import PROFILE, write_examples
from rpo_kit.lamp.own_texts.languages import UNKNOWN, language_of
from rpo_kit.lamp.own_texts.mail_body import own_part
from rpo_kit.lamp.own_texts.mailbox import without_tags
from rpo_kit.lamp.own_texts.passages import LONGEST, Passage, cut_texts, passages_of
from rpo_kit.lamp.own_texts.plain_words import plain_words
from rpo_kit.lamp.own_texts.split import by_time, without_overlap
from rpo_kit.lamp.own_texts.text import Notes, OwnText, decoded

TEXTS = ["Über den Fluss, naïve Ideen", 'She said "no", twice; really', "third text of the file"]


def texts_of(path, **options):
    notes = Notes()
    return [text.text for text in read_own(path, Options(**options), notes)], notes


def many(count=40, **fields):
    rng = random.Random(1)
    return [OwnText(str(n), voice(rng), **fields) for n in range(count)]


# ---- tables and lines ---------------------------------------------------------------------------------------------


def table(delimiter: str) -> str:
    rows = [["when", "body"], *[[f"2024-01-0{n}", text.replace('"', '""')] for n, text in enumerate(TEXTS, 1)]]
    return "".join(delimiter.join(f'"{cell}"' for cell in row) + "\r\n" for row in rows)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
def test_a_table_is_read_in_any_encoding_and_with_any_delimiter(tmp_path, delimiter, encoding):
    path = tmp_path / "posts.csv"
    path.write_bytes(table(delimiter).encode(encoding))
    texts, notes = texts_of(path)
    assert texts == TEXTS
    assert "posts.csv: text column: body (guessed; --text COLUMN to change)" in notes.lines


def test_columns_that_are_named_are_taken_and_unknown_ones_are_refused_with_those_there_are(tmp_path):
    path = tmp_path / "posts.csv"
    path.write_text("title,body,writer\nA,long text of a body,ann\nB,another text of a body,bob\n")
    notes = Notes()
    texts = read_own(path, Options(columns=Columns("title", "writer", "none")), notes)
    assert [(text.text, text.author) for text in texts] == [("A", "ann"), ("B", "bob")]
    assert not [line for line in notes.lines if "guessed" in line]
    with pytest.raises(KitError, match="has no column 'text': --text takes one of 'title', 'body', 'writer'"):
        read_own(path, Options(columns=Columns("text")), Notes())


def test_without_a_telling_name_the_longest_column_is_the_text(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a;b\n1;a long sentence of words\n2;another long sentence\n")
    assert texts_of(path)[0] == ["a long sentence of words", "another long sentence"]


def test_uneven_rows_are_read_as_far_as_they_go_and_counted(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,date\nonly a text\none,2024-01-01,more\n\n")
    texts, notes = texts_of(path)
    assert texts == ["only a text", "one"]
    assert notes.counts["rows with too few or too many columns (read as far as they go)"] == 2


def test_lines_of_json_may_be_objects_or_texts_and_damaged_ones_are_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [json.dumps({"content": "a", "n": 1, "meta": {"x": 1}}), '"b"', '{"content": ', "[1]", ""]
    path.write_text("\n".join(lines))
    notes = Notes()
    assert [text.text for text in read_own(path, Options(columns=Columns("content")), notes)] == ["a", ""]
    assert notes.counts["lines of x.jsonl that are not JSON (left out)"] == 1
    assert notes.counts["entries of x.jsonl that are neither objects nor texts (left out)"] == 1


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"posts": rows, "n": 2}])
def test_a_json_list_is_found_also_inside_an_object(tmp_path, wrap):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(wrap([{"text": "one"}, {"text": "two"}])))
    assert texts_of(path)[0] == ["one", "two"]


def test_objects_in_objects_are_read_as_in_an_archive_of_tweets(tmp_path):
    tweets = [
        {"tweet": {"id": str(n), "full_text": f"words {n}", "created_at": f"Wed Oct {n} 20:19:24 +0000 2018",
                   "entities": {"hashtags": [], "user": {"name": "ann"}}}}
        for n in (10, 17)
    ]  # fmt: skip
    path = tmp_path / "tweets.js"
    path.write_text(f"window.YTD.tweets.part0 = {json.dumps(tweets)}")
    notes = Notes()
    found = [(text.text, text.date[:10], text.author) for text in read_own(path, Options(), notes)]
    assert found == [("words 10", "2018-10-10", "ann"), ("words 17", "2018-10-17", "ann")]
    assert "text column: tweet.full_text (guessed; --text COLUMN to change)" in notes.report()
    deep = {"text": "here"}
    for _ in range(300):
        deep = {"text": "here", "a": deep}
    path.write_text(json.dumps([deep]))
    assert texts_of(path)[0] == ["here"]


def test_a_text_in_parts_is_joined_as_telegram_writes_one_with_a_link(tmp_path):
    parts = ["see ", {"type": "link", "text": "https://example.org"}, " please"]
    rows = [
        {"from": "mia", "text": "one", "reactions": [{"count": 2}], "tags": ["a long", "list"]},
        {"from": "mia", "text": parts},
    ]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"name": "chat", "messages": [*rows, {"from": "mia", "text": []}]}))
    assert texts_of(path)[0] == ["one", "see https://example.org please", ""]


def test_the_content_decides_where_the_name_is_wrong(tmp_path):
    (tmp_path / "a.txt").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert texts_of(tmp_path / "a.txt")[0] == ["one", "two"]
    write_mailbox(tmp_path / "b.txt", 6)
    assert "read as" not in texts_of(tmp_path / "b.txt")[1].report()
    assert "6 mails" in texts_of(tmp_path / "b.txt")[1].report()


# ---- plain text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "separator", "found"),
    [
        ("one\n---\ntwo\n---\nthree", "", ["one", "two", "three"]),
        ("one\n\nmore\n* * *\ntwo\n* * *\n", "", ["one\n\nmore", "two"]),
        ("one\n\n\ntwo\n\nmore", "", ["one", "two\n\nmore"]),
        ("one\nmore\n\ntwo", "", ["one\nmore", "two"]),
        ("one\n\nmore\nEND\ntwo", "END", ["one\n\nmore", "two"]),
        ("one\r\n%\r\ntwo\r\n%\r\n", "", ["one", "two"]),
    ],
)
def test_plain_text_is_divided_at_separators(tmp_path, content, separator, found):
    path = tmp_path / "notes.txt"
    path.write_bytes(content.encode())
    texts, notes = texts_of(path, separator=separator)
    assert [text.strip() for text in texts] == found
    assert "texts are divided at" in notes.report()


@pytest.mark.parametrize("line", ["-" * 100_000 + ">", "- " * 50_000 + "x", "to" + " " * 100_000 + "x", "\n" * 100_000])
def test_a_line_of_one_mark_or_of_blanks_is_read_in_no_time(tmp_path, line):
    """With a pattern that backtracks, each of them takes minutes."""
    (tmp_path / "x.txt").write_text(f"one\n{line}\ntwo\n\n\n{line}")
    assert read_own(tmp_path / "x.txt", Options(), Notes())[0].text.startswith("one")
    assert own_part(f"one\n{line}", Notes()).startswith("one")


def test_a_text_per_line_is_hinted_at_and_read_on_request(tmp_path):
    path = tmp_path / "posts.txt"
    path.write_bytes(b"one\r\ntwo\r\nthree\r\n")
    texts, notes = texts_of(path)
    assert len(texts) == 1
    assert "one text of 3 lines; if every line is a text, add --format lines" in notes.report()
    notes = Notes()
    found = read_own(path, Options("lines"), notes)
    assert [(text.id, text.text) for text in found] == [
        (f"posts.txt:{n}", word) for n, word in enumerate(("one", "two", "three"), 1)
    ]
    path.write_text("one text\n")
    assert "--format lines" not in texts_of(path)[1].report()


def test_a_separator_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("one\n\ntwo")
    with pytest.raises(KitError, match="has no line '###'"):
        texts_of(path, separator="###")


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("none.csv", None, "There is no file"),
        ("x.csv", bytes(range(1, 9)) * 900, "is not a text file"),
        (
            "x.docx",
            b"PK\x03\x04\x14\x00" + b"text" * 90,
            "is a ZIP archive, as .docx, .odt and .xlsx are: unpack it, or",
        ),
        ("sent.mbox", b"\x1f\x8b\x08\x00" + b"text" * 90, "is a gzip archive"),
        ("x.txt", b"%PDF-1.7\ntext", "is a PDF"),
        ("x.rtf", b"{\\rtf1 text}", "is an RTF document"),
        ("x.pst", b"!BDN\x00text", "is an Outlook data file"),
        ("x.json", b'{"a": 1', "is not JSON"),
        ("x.mbox", b"no mail here", "holds no mails"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path, name, data, sentence):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(KitError, match=sentence):
        texts_of(tmp_path / name)
    with pytest.raises(KitError, match="is a folder"):
        texts_of(tmp_path)


@pytest.mark.parametrize("encoding", ["", "utf-8", "x-unknown", "utf-16", "idna", "base64"])
def test_decoding_never_raises(encoding):
    rng = random.Random(0)
    for _ in range(200):
        data = rng.randbytes(rng.randrange(40))
        text, _ = decoded(data, encoding)
        text.encode()  # no lone surrogates
        assert "\0" not in text


# ---- mails --------------------------------------------------------------------------------------------------------

QUOTES = {
    "on, wrote": "Sure, see you.\n\nOn Tue, 3 May 2022 at 10:15, Ann <ann@example.com> wrote:\n> Coming?\n> Ann",
    "broken over two lines": "Sure, see you.\n\nOn Tuesday, 3 May 2022, Ann of the office\n<a@b.c> wrote:\n\n> Coming?",
    "without marks": "Sure, see you.\n\nOn 3 May 2022, Ann wrote:\n\nComing?\nAnn",
    "German": "Sure, see you.\n\nAm 03.05.22 um 10:15 schrieb Ann:\n> Kommst du?",
    "German, name first": "Sure, see you.\n\nAnn Muster schrieb am 03.05.22:\n> Kommst du?",
    "French": "Sure, see you.\n\nLe mar. 3 mai 2022 à 10:15, Ann <a@b.c> a écrit :\n> Tu viens ?",
    "Outlook": "Sure, see you.\n\n-----Original Message-----\nFrom: Ann\nSent: Tuesday\nSubject: x\n\nComing?",
    "Outlook, no line": "Sure, see you.\n\nVon: Ann\nGesendet: Dienstag\nAn: Mo\nBetreff: x\n\nKommst du?",
    "Outlook, French": "Sure, see you.\n\nDe : Ann\nEnvoyé : mardi\nÀ : Mo\nObjet : x\n\nTu viens ?",
    "no attribution": "> Coming?\n\nSure, see you.",
}


@pytest.mark.parametrize("body", QUOTES.values(), ids=QUOTES)
def test_quoted_mail_goes_and_the_own_words_stay(body):
    notes = Notes()
    assert own_part(body, notes) == "Sure, see you."
    assert notes.counts[mail_body.QUOTED] == 1


def test_answers_between_quoted_lines_stay():
    body = "On 3 May 2022, Ann wrote:\n> When?\n\nAt nine.\n\n> Where?\n\nAt the depot."
    assert own_part(body, Notes()).split() == ["At", "nine.", "At", "the", "depot."]


@pytest.mark.parametrize(
    "body",
    [
        "See you there.\n-- \nMo Tern\nTern & Tern",
        "See you there.\n\nSent from my iPhone",
        "See you there.\n\nVon meinem Telefon gesendet.",
        "See you there.\n-- \nMo\n\nOn 3 May 2022, Ann wrote:\n> Coming?",
    ],
)
def test_signatures_go(body):
    notes = Notes()
    assert own_part(body, notes) == "See you there."
    assert notes.counts[mail_body.SIGNED] == 1


@pytest.mark.parametrize(
    "line",
    [
        "---------- Forwarded message ----------",
        "Begin forwarded message:",
        "-------- Weitergeleitete Nachricht --------",
        "---------- Message transféré ---------",
    ],
)
def test_what_was_forwarded_goes(line):
    notes = Notes()
    assert own_part(f"fyi, read this\n\n{line}\nFrom: a\n\nLong text.", notes) == "fyi, read this"
    assert own_part(f"{line}\nFrom: a\n\nLong text.", notes) == ""
    assert (notes.counts[mail_body.FORWARDED], notes.counts[mail_body.EMPTY]) == (2, 1)


@pytest.mark.parametrize(
    "text",
    [
        "On balance I would say we wait.\nWhat do you think?",
        "I met Ann on Tuesday and she wrote: nothing.",
        "Am Montag komme ich, am Dienstag nicht.",
        "From: the heart.",
    ],
)
def test_own_sentences_that_look_like_quotes_stay(text):
    assert own_part(text, Notes()) == text


def test_flowed_lines_are_joined_and_the_mark_of_a_signature_stays_one(tmp_path):
    path = tmp_path / "one.eml"
    head, body = "Content-Type: text/plain; format=flowed", "See you \nthere at noon. \n> At \n> one?\n-- \nMia\n"
    path.write_bytes(f"{head}\n\n{body}".encode())
    (text,) = read_own(path, Options(), Notes())
    assert text.text == "See you there at noon."


def test_html_loses_its_tags_styles_and_quoted_mail():
    html = "<html><style>p{}</style><p>See&nbsp;you<br>there</p><blockquote><p>Coming?</p></blockquote><p>Mo</p>"
    assert without_tags(html).split() == ["See", "you", "there", "Mo"]
    assert "unclosed &" in without_tags("<p><b>unclosed & <<>> odd")


def test_a_mailbox_with_everything_in_it_is_read_and_counted(tmp_path):
    notes = Notes()
    texts = read_own(write_mailbox(tmp_path / "sent.mbox", 300), Options(), notes)
    kept = cleaned(texts, Choice(), notes)
    counts = notes.counts
    assert counts["texts by others (left out)"] == 30
    assert counts["attachments (left out)"] == 12
    assert counts["texts of more than 2,000 words (left out; --max-words)"] == 6
    assert counts[mail_body.EMPTY] == 6
    assert counts[mail_body.FORWARDED] == 6
    assert counts["mails in HTML alone (read without their tags)"] == 6
    assert counts["repeated texts (left out)"] == 5
    assert counts[mail_body.QUOTED] > 50
    assert counts[mail_body.SIGNED] > 50
    assert len(kept) > 200
    assert {text.author for text in kept} == {ME}
    assert all(text.date.startswith("202") for text in kept)
    together = " ".join(text.text for text in kept)
    for foreign in (
        "ÿþ",
        "Could you",
        "wrote:",
        "Imaginary Lane",
        "Yours sincerely",
        "color: red",
        "The timetable is out",
    ):
        assert foreign not in together, foreign
    assert any("languages: English" in line and "German 12" in line for line in notes.lines)


def test_nothing_in_a_mail_can_stop_the_reader(tmp_path):
    """Bytes of a mailbox are changed at random, headers and encoded parts among them."""
    data, rng = bytearray(write_mailbox(tmp_path / "sent.mbox", 42).read_bytes()), random.Random(3)
    for trial in range(12):
        damaged = bytearray(data)
        for _ in range(400):
            damaged[rng.randrange(20, len(damaged))] = rng.choice(b'\x00\xff\x80=?";<>\n-:%@ ')
        path = tmp_path / f"{trial}.mbox"
        path.write_bytes(bytes(damaged))
        for text in read_own(path, Options(), Notes()):
            text.text.encode()
            assert text.date == "" or len(text.date) == 19


@pytest.mark.parametrize(
    "head",
    [
        "From: =?x-unknown-9?Q?=FF?= <mo@example.org>",
        "From: =?utf-8?B?not base64!?=",
        "Date: the day after tomorrow",
        "Content-Type: text/plain; charset*0*=x''%FF; name*=unknown-8''%FF%FE",
        "Content-Type: multipart/mixed",
        "Content-Transfer-Encoding: base64",
        "Content-Disposition: ; filename*=''%E0%A5%A7%",
    ],
)
def test_odd_heads_are_read_as_well_as_can_be(tmp_path, head):
    path = tmp_path / "one.eml"
    path.write_bytes(f"{head}\nSubject: x\n\nsome words of a mail\n".encode("latin-1"))
    assert len(read_own(path, Options(), Notes())) <= 1


@pytest.mark.parametrize(
    "head",
    [
        "Content-Type: text/plain; name*=utf-8''a.txt; name*0=b",  # a part of a name without a number beside one with
        "Content-Type: message/rfc822\n\n" * 3000,
    ],
    ids=["name", "depth"],
)
def test_a_mail_that_pythons_parser_trips_over_is_left_out_and_counted(tmp_path, head):
    notes = Notes()
    path = tmp_path / "sent.mbox"
    path.write_text(f"From me\n{head}\n\nx\n\nFrom me\nFrom: mo@example.org\n\nsome words of a mail\n")
    assert [text.text for text in read_own(path, Options(), notes)] == ["some words of a mail"]
    assert notes.counts["mails that are too damaged to be read (left out)"] == 1


# ---- whose, how long, in which language ---------------------------------------------------------------------------


def test_the_one_who_wrote_most_is_taken_and_the_others_are_named():
    notes = Notes()
    texts = [*many(3, author="ann"), *many(2, author="bob"), *many(1)]
    kept = cleaned([OwnText(str(n), f"{t.text} {n}", author=t.author) for n, t in enumerate(texts)], Choice(), notes)
    assert {text.author for text in kept} == {"ann"}
    line = "author: ann (who wrote most; --author NAME to change), 3 of 6 texts; others: bob 2, without an author 1"
    assert line in notes.lines


def test_an_author_may_be_given_in_part_but_must_be_one():
    texts = [
        OwnText(str(n), f"text number {n} of it", author=name) for n, name in enumerate(("ann@x", "anna@x", "bob@x"))
    ]
    assert [text.author for text in cleaned(texts, Choice(author="BOB"), Notes())] == ["bob@x"]
    assert [text.author for text in cleaned(texts, Choice(author="ann@x"), Notes())] == ["ann@x"]
    with pytest.raises(KitError, match="--author ann fits 2 authors: ann@x 1, anna@x 1"):
        cleaned(texts, Choice(author="ann"), Notes())


@pytest.mark.parametrize(
    ("own", "neutral"),
    [
        ("Jutro będę u babci i mamy, a potem to ok", "Jutro będę u babci i mamy, a potem to ok."),
        ("u mě doma r tohle ok", "U mě doma r tohle ok."),
        ("ain't gonna happen, shan't", "Is not going to happen, shall not."),
        ("see u 👩‍💻 tmrw ok", "See you tomorrow all right."),
    ],
)
def test_english_rules_are_for_english_texts(own, neutral):
    assert plain_words(own) == neutral


def test_other_languages_are_shown_and_only_left_out_on_wish():
    texts = [
        OwnText("1", "I think that the train is late and we wait"),
        OwnText("2", "ich glaube nicht, dass der Zug kommt"),
    ]
    texts += [OwnText("3", "Спасибо вам большое, до завтра"), OwnText("4", "hm oh well aha")]
    notes = Notes()
    assert [text.id for text in cleaned(texts, Choice(), notes)] == ["1", "2", "4"]
    assert notes.counts["texts without Latin letters, which ROUGE cannot score (left out)"] == 1
    assert "English 1, German 1, Cyrillic script 1" in notes.report()
    kept = cleaned(texts, Choice(language="english"), notes)
    assert [text.id for text in kept] == ["1", "4"], "what cannot be told stays"
    assert notes.counts["texts in another language (left out)"] == 1
    with pytest.raises(KitError, match="there are English, German, "):
        cleaned(texts, Choice(language="Cyrillic script"), notes)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Je ne sais pas si nous avons une place pour les autres", "French"),
        ("no sé si los otros son como la gente que está aquí", "Spanish"),
        ("ik weet niet of het nog kan, maar we zijn er ook", "Dutch"),
        ("明日の会議は何時からですか", "Hiragana script"),
        ("🙂 12:30", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_languages_are_told_by_script_and_frequent_words(text, language):
    assert language_of(text) == language


def test_if_all_texts_are_too_short_the_error_says_so():
    texts = [OwnText(str(n), f"ok {n}") for n in range(30)]
    with pytest.raises(KitError, match=r"None of the 30 texts can be used(.|\n)*30  texts of fewer than 4 words"):
        cleaned(texts, Choice(), Notes())


def test_repeated_texts_are_one_whatever_their_case_and_marks():
    notes = Notes()
    kept = cleaned(
        [OwnText("1", "See you on Monday!"), OwnText("1", "see you, on monday"), OwnText("1", "other words of it")],
        Choice(),
        notes,
    )
    assert [text.id for text in kept] == ["1", "1#2"], "each has an id of its own"
    assert notes.counts["repeated texts (left out)"] == 1


# ---- passages -----------------------------------------------------------------------------------------------------


def test_passages_are_whole_paragraphs_or_sentences_in_one_line():
    long = " ".join(f"Sentence {n} has these six words." for n in range(20))
    found = passages_of(f"hey all,\n\n{long}\n\nsee you\nsoon then, all of you")
    assert all("\n" not in passage and len(passage.split()) <= LONGEST + 6 for passage in found)
    assert found[0].startswith("hey all, Sentence 0")
    assert " ".join(found).split() == f"hey all, {long} see you soon then, all of you".split(), "nothing is lost"


def test_a_sentence_without_end_is_cut_between_words():
    found = passages_of("word " * 100)
    assert [len(passage.split()) for passage in found] == [40, 40, 20]


# ---- time and leaks -----------------------------------------------------------------------------------------------


def test_the_newest_are_held_out():
    texts = [OwnText(str(n), f"text {n}", date=f"2024-01-{30 - n:02d}T00:00:00") for n in range(30)]
    history, held_out = by_time(texts, 0.2, Notes())
    assert [int(text.id) for text in held_out] == [5, 4, 3, 2, 1, 0]
    assert max(text.date for text in history) < min(text.date for text in held_out)


@pytest.mark.parametrize(
    ("dated", "sentence"),
    [
        (0, "No text has a date: the order"),
        (10, "20 of 30 texts have no date: the order"),
        (28, "2 of 30 texts have no date: each"),
    ],
)
def test_missing_dates_are_told(dated, sentence):
    texts = [OwnText(str(n), "t", date=f"2024-01-{n + 1:02d}" * (n < dated)) for n in range(30)]
    notes = Notes()
    history, held_out = by_time(texts, 0.2, notes)
    assert [int(text.id) for text in (*history, *held_out)] == list(range(30))
    assert sentence in notes.report()
    assert len({bool(text.date) for text in (*history, *held_out)}) == 1, "LaMP's reader wants all or none"


@pytest.mark.parametrize(
    "dates",
    [
        ["3.5.2024", "14.5.2024 10:30"],
        ["05/03/2024", "05/14/2024"],
        ["3/5/2024", "14/5/2024"],
        ["1714694400", "1715644800"],
    ],
)
def test_dates_are_read_in_many_forms(tmp_path, dates):
    path = tmp_path / "x.csv"
    path.write_text("text,date\n" + "".join(f"t{n},{date}\n" for n, date in enumerate(dates)))
    assert [text.date[:10] for text in read_own(path, Options(), Notes())] == ["2024-05-03", "2024-05-14"]


def test_a_mark_of_an_encoding_is_no_part_of_the_text():
    assert decoded(b"\xff\xfeh\0e\0y\0") == ("hey", "utf-16")
    assert decoded(b"\xff\xfeh\0e\0y\0!")[0] == "hey!", "one byte too many"


def test_too_few_texts_are_refused_with_what_became_of_them():
    notes = Notes()
    notes.counts["empty texts (left out)"] = 12
    with pytest.raises(KitError, match=r"Too few texts are left: 24(.|\n)*12  empty texts"):
        by_time(many(24), 0.2, notes)
    with pytest.raises(KitError, match="--held-out 1 must be a share"):
        by_time(many(24), 1.0, notes)


def test_what_is_in_both_parts_is_not_held_out():
    words = [" ".join(f"w{n}x{k}" for k in range(12)) for n in range(20)]
    history = [Passage(f"h{n}", f"h{n}", text) for n, text in enumerate(words)]
    held_out = [Passage(f"d{n}", f"d{n}", f"new{n} " + " ".join(f"v{n}x{k}" for k in range(9))) for n in range(6)]
    exact = Passage("e", "e", words[3].upper() + "!")
    near = Passage("n", "n", words[4] + " and one more thing")
    notes = Notes()
    kept = without_overlap(history, [*held_out, exact, near], notes)
    assert [passage.id for passage in kept] == [f"d{n}" for n in range(6)]
    assert notes.counts["held-out passages that the history has too (left out)"] == 1
    assert notes.counts["held-out passages that are nearly in the history (left out)"] == 1
    with pytest.raises(KitError, match="Of the held-out texts only 0 passages"):
        without_overlap(history, [exact], Notes())


# ---- neutral words, and LaMP's files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "neutral"),
    [
        ("thx!! gonna be late tmrw lol :)", "Thank you. I am going to be late tomorrow."),
        ("the kids are ill, ill bring the tent", "The kids are ill, I will bring the tent."),
        ("i dont know if it's ok??", "I do not know if it is all right?"),
        ("I would be grateful for an answer.", "I would be grateful for an answer."),
        ("im zug ist es nicht so schön, wir sind im garten", "Im zug ist es nicht so schön, wir sind im garten."),
        ("", ""),
    ],
)
def test_rules_write_plain_words_and_leave_the_rest(own, neutral):
    assert plain_words(own) == neutral


def test_every_passage_of_the_history_becomes_an_example_and_held_out_ones_are_texts_apart(tmp_path):
    notes = Notes()
    passages = cut_texts(many(60), notes)
    history, held_out = passages[:-15], passages[-15:]
    neutral = {passage.id: plain_words(passage.text) for passage in passages} | {held_out[0].id: " "}
    assert write_examples(tmp_path, history, held_out, neutral) == {"train": len(history), "dev": 14}
    rows = {split: json.loads((tmp_path / f"{split}_questions.json").read_text()) for split in ("train", "dev")}
    assert {row["user_id"] for row in rows["train"]} == {"me"}
    assert len({row["user_id"] for row in rows["dev"]}) > 5, "intervals are over texts"
    assert all(len(row["profile"]) <= PROFILE for split in rows.values() for row in split)
    profile = json.loads((tmp_path / "profiles" / "me.json").read_text())
    assert profile == rows["dev"][0]["profile"]


def test_a_gold_in_the_profile_is_refused(tmp_path):
    history = [Passage(f"{n}/1", str(n), f"text number {n}") for n in range(4)]
    twin = Passage("9/1", "9", "text number 2")
    with pytest.raises(KitError, match="1 dev examples have their gold in the profile, such as 9/1"):
        write_examples(tmp_path, history, [twin], {p.id: "neutral" for p in (*history, twin)})
