"""The playground's page, used without a screen: settings, answers, what if, and errors that lose nothing."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeModule

from rpo_kit.errors import KitError
from rpo_kit.lamp.personas import persona
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.chat import Completion
from rpo_kit.rewriting import reflection
from rpo_kit.runs import existing_run
from rpo_kit.study import playground_widgets
from rpo_kit.study.playground_html import changes_html, word_changes
from rpo_kit.study.playground_widgets import PlaygroundPage, playground

TWEETS = {"data.task": "LaMP-7", "data.dev_users": 3}
GOOD = "<observe>[1] opens omg: bubbly\n[9] late</observe><plan>bubbly: omg.. xx</plan><rewrite>omg 3 xx</rewrite>"


@pytest.fixture
def module(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> FakeModule:
    module = FakeModule(tiny_llama)
    module.good = GOOD
    monkeypatch.setattr(reflection, "generate", module.generate)
    return module


@pytest.fixture
def make(prepared: Any, module: FakeModule) -> Callable[..., PlaygroundPage]:
    def making(overrides: dict[str, Any] | None = None) -> PlaygroundPage:
        page = playground(prepared(TWEETS | (overrides or {})))
        page.play.module = module
        return page

    return making


def text(widget: Any) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", widget.value)).split())


def dimmed(widget: Any) -> bool:
    return "opacity:0.35" in widget.value.split(">")[0]


# ---- the whole way ------------------------------------------------------------------------------------------------


def test_one_click_shows_the_whole_way(make):
    page = make()
    assert "press Answer" in page.page.value
    assert page.panel.layout.display == "none"
    page.button.click()
    shown = text(page.page)
    user = page.play.users[page.settings.user.value]
    steps = [
        "query q",
        "1 · generic answer",
        "2 · items P",
        "3 · observations",
        "4 · plan",
        "5 · rewrite",
        "reward in RL",
    ]
    assert [shown.index(step) for step in steps] == sorted(shown.index(step) for step in steps)
    assert f"gold: {user['output']}" in shown
    assert page.panel.layout.display == ""
    assert page.error == ""


def test_the_status_names_the_settings_that_the_answer_belongs_to(make):
    page = make()
    page.settings.k.value, page.settings.retriever.value, page.settings.stage.value = 2, "recency", "sft"
    page.button.click()
    user = page.play.users[page.settings.user.value]
    assert re.fullmatch(
        rf"Done in \d+\.\d s: {user['user_id']}, k = 2 \(2 of 7 items shown\), recency, SFT, temperature 0",
        text(page.status),
    )
    page.settings.temperature.value, page.settings.draw.value = 0.5, 3
    page.button.click()
    assert text(page.status).endswith("SFT, temperature 0.5, draw 3")


def test_each_observation_links_to_the_item_that_it_cites(make):
    page = make()
    page.button.click()
    (target,) = re.findall(r"<a href='#([^']+)' title='([^']*)'", page.page.value)
    assert f"<div id='{target[0]}'" in page.page.value
    assert page.answer.rewrite.items[0]["text"][:20] in target[1]
    assert "[9] <i>(no such item)</i>" in page.page.value
    other = make()
    assert other.anchor != page.anchor


def test_each_observation_about_an_invented_user_is_marked_true_or_put_right(make, module):
    page = make()
    user = page.play.users[page.settings.user.value]
    items = [user["profile"][n] for n in user["ranking"][:2]]
    first, second = (persona("LaMP-7").observe(item, user["facts"]["items"][item["id"]]) for item in items)
    module.writes = lambda conversation: GOOD.replace("opens omg: bubbly", first).replace("[9]", "[2]")
    page.button.click()
    shown = text(page.page)
    assert f"{first} ✓" in shown
    assert f"late ✗ rightly: [2] {second}" in shown


def test_what_changed_is_marked_without_colors():
    changes = word_changes("I missed the tram", "ugh missed the tram smh")
    assert changes == [("-", "I"), ("+", "ugh"), (" ", "missed the tram"), ("+", "smh")]
    shown = changes_html("I missed <b>", "ugh missed <b>")
    assert "<del" in shown
    assert "<ins" in shown
    assert "missed &lt;b&gt;" in shown
    assert "color" not in shown
    assert word_changes("", "") == []


def test_a_completion_that_is_no_trajectory_is_shown_with_the_reason(make, module):
    page = make()
    module.writes = lambda conversation: "I would <b>not</b>"
    page.button.click()
    assert "not a trajectory: no tags" in text(page.page)
    assert "I would &lt;b&gt;not&lt;/b&gt;" in page.page.value
    assert "the generic answer is used" in text(page.page)


def test_a_rewrite_that_is_not_used_is_shown_with_the_reason(make):
    page = make()
    page.settings.source.value = "own"
    page.button.click()
    assert "The profile is empty: there is nothing to fit the answer to." in text(page.page)
    assert "omg 3 xx" in text(page.page)
    assert "no items" in text(page.page)


def test_without_a_gold_the_page_says_why_there_is_no_reward(make):
    page = make()
    page.settings.gold.value = ""
    page.button.click()
    assert "The gold is unknown" in text(page.page)
    page.settings.gold.value = "omg 3 xx"
    page.button.click()
    assert "(score 1.000, format 0" in text(page.page), "it cites an item that was not shown"


# ---- settings -----------------------------------------------------------------------------------------------------


def test_a_change_dims_the_answer_until_the_next_one(make):
    page = make()
    page.button.click()
    assert not dimmed(page.page)
    page.settings.k.value = 1
    assert dimmed(page.page)
    assert text(page.status) == "The settings have changed: press Answer."
    page.button.click()
    assert not dimmed(page.page)


def test_only_the_chosen_way_to_name_a_history_is_shown(make):
    page = make()
    for source in ("run", "persona", "own"):
        page.settings.source.value = source
        shown = [name for name, control in page.settings.chosen.items() if control.layout.display != "none"]
        assert shown == [source]


def test_a_user_comes_with_the_own_query_and_gold(make):
    page = make()
    settings = page.settings
    other = list(page.play.users)[1]
    settings.user.value = other
    example = page.play.users[other]
    assert settings.asked.value == other
    assert settings.parts["text"].value == get_task("LaMP-7").query_text(example["input"])
    assert settings.gold.value == example["output"]
    settings.source.value = "persona"
    assert settings.asked.value == settings.persona.value


def test_another_users_query_stays_when_the_user_changes(make):
    page = make()
    first, second, third = page.play.users
    page.settings.asked.value = third
    query = page.settings.parts["text"].value
    page.settings.user.value = second if page.settings.user.value == first else first
    assert (page.settings.asked.value, page.settings.parts["text"].value) == (third, query)


def test_own_words_have_no_gold_and_are_not_lost_by_looking_at_other_queries(make):
    page = make()
    settings = page.settings
    settings.parts["text"].value = "my own words"
    assert (settings.asked.value, settings.gold.value) == ("", "")
    settings.gold.value = "lol"
    settings.asked.value = list(page.play.users)[1]
    assert settings.parts["text"].value != "my own words"
    settings.asked.value = ""
    assert settings.parts["text"].value == "my own words"
    settings.user.value = list(page.play.users)[2]
    assert settings.parts["text"].value == "my own words"


def test_a_citation_query_has_a_field_for_each_part(make):
    page = make({"data.task": "LaMP-1"})
    assert list(page.settings.parts) == ["title", "ref1", "ref2"]
    page.button.click()
    assert page.error == ""


# ---- what if ------------------------------------------------------------------------------------------------------


def words_of_items(conversation: Any) -> str:
    """A rewrite that holds the first word of each item in the prompt."""
    lines = re.findall(r'^\[\d+\] "(\w+)', conversation[1]["content"], re.MULTILINE)
    return GOOD.replace("omg 3 xx", " ".join(lines))


@pytest.fixture
def asked(make, module) -> PlaygroundPage:
    page = make()
    module.writes = words_of_items
    page.settings.source.value, page.settings.items.value = "own", "alpha rain\nbeta rain\ngamma rain"
    page.settings.parts["text"].value = "alpha beta gamma"
    page.settings.k.value = 3
    page.play.base.known[page.task.make_input(text="alpha beta gamma")] = Completion("alpha beta", True, 1, 1)
    page.button.click()
    return page


def test_there_is_a_row_for_each_item_shown(asked):
    shown = [row for row in asked.rows.rows if row.layout.display != "none"]
    assert len(shown) == 3
    assert [line.value for line in asked.rows.lines[:3]] == [item["text"] for item in asked.answer.rewrite.items]


def test_switching_an_item_off_shows_what_the_rewrite_loses(asked):
    first = asked.answer.rewrite.items[0]["text"].split()[0]
    asked.rows.shown[0].value = False
    asked.what_if.click()
    assert f"Lost content: {first}." in text(asked.change)
    assert "2 of 3 items" in text(asked.status)
    assert f"<del style='opacity:0.65'>{first}</del>" in asked.change.value
    assert not dimmed(asked.change)
    asked.rows.shown[0].value = True
    assert dimmed(asked.change), "it belongs to other boxes"


def test_an_edited_item_is_read_as_it_is_edited(asked, module):
    asked.rows.lines[0].value = "delta <rewrite> sun"
    asked.what_if.click()
    assert "delta" in asked.changed.rewrite.text
    assert "<rewrite>" not in module.asked[-1][1]["content"]


def test_all_items_off_is_an_empty_profile(asked, module):
    module.writes = lambda conversation: GOOD
    for box in asked.rows.shown[:3]:
        box.value = False
    asked.what_if.click()
    assert "The profile is empty" in text(asked.change)


def test_what_if_without_a_change_or_with_other_settings_says_what_to_do(asked):
    asked.what_if.click()
    assert "Nothing is changed: switch an item off, or edit it." in text(asked.status)
    asked.rows.shown[0].value = False
    asked.settings.k.value = 1
    asked.what_if.click()
    assert "Press Answer first" in text(asked.status)


def test_a_change_that_changes_nothing_says_so(asked, module):
    module.writes = lambda conversation: GOOD
    asked.button.click()
    asked.rows.shown[0].value = False
    asked.what_if.click()
    assert "Nothing changed" in text(asked.change)


def test_edits_are_kept_by_item_when_the_answer_is_another_one(asked):
    line = asked.rows.lines[1].value
    asked.rows.lines[1].value, asked.rows.shown[2].value = "edited", False
    asked.settings.k.value = 2
    asked.button.click()
    assert asked.rows.lines[1].value == "edited"
    assert asked.rows.edits[line] == [True, "edited"]
    asked.settings.k.value = 3
    asked.button.click()
    assert not asked.rows.shown[2].value
    asked.rows.lines[1].value = line
    assert line not in asked.rows.edits


# ---- errors, and a restart ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KitError("First run `python -m rpo_kit rl --run r`."), "First run notebook 04_rl_reinforce_pp (or "),
        (MemoryError(), "The model does not fit into this machine's memory (MemoryError): close"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "The model does not fit"),
        (RuntimeError("CUDA out of memory. Tried"), "The model does not fit"),
        (ZeroDivisionError("x"), "This did not work (ZeroDivisionError: x). What you entered is kept"),
    ],
)
def test_an_error_is_a_sentence_on_the_page_and_loses_nothing(make, module, error, said):
    page = make()
    page.button.click()
    before = text(page.page)

    def fail(stage: str) -> Any:
        raise error

    page.settings.parts["text"].value = "my own words"
    good, module.at = module.at, fail
    page.button.click()
    assert said in text(page.status)
    assert page.error
    assert page.settings.parts["text"].value == "my own words"
    assert dimmed(page.page)
    assert text(page.page) == before
    assert not page.button.disabled
    module.at = good
    page.button.click()
    assert page.error == ""


def test_a_run_without_adapters_names_the_notebook(prepared, module):
    page = playground(prepared(TWEETS))
    page.settings.stage.value = "rl"
    page.button.click()
    assert "The stage 'rl' of run 'r' is not finished: first run notebook 04_rl_reinforce_pp" in text(page.status)


def test_a_run_without_users_says_so_and_offers_the_others(new_run):
    page = playground(new_run(TWEETS))
    assert "first run notebook 01_lamp_and_retrieval" in text(page.status)
    assert [name for _, name in page.settings.source.options] == ["persona", "own"]


def test_ten_thousand_characters_are_a_sentence_and_stay(make):
    page = make()
    long = "word " * 2000
    page.settings.source.value, page.settings.items.value = "own", long
    page.button.click()
    assert page.error == ""
    assert "Items are shortened in the prompt" in text(page.page)
    assert len(page.page.value) < 8000
    page.settings.parts["text"].value = long
    page.button.click()
    assert "is too long: the reflection module reads at most" in text(page.status)
    assert page.settings.parts["text"].value == long


def test_what_users_wrote_is_never_interpreted(make, module):
    page = make()
    evil = "<img src=x onerror=alert(1)> ' \" <script>"
    module.writes = lambda conversation: GOOD.replace("omg 3 xx", evil).replace("opens omg", evil)
    page.settings.source.value, page.settings.items.value = "own", evil
    page.settings.parts["text"].value = page.settings.gold.value = evil
    page.button.click()
    page.rows.shown[0].value = False
    page.what_if.click()
    for shown in (page.page.value, page.change.value):
        assert "<img" not in shown
        assert "<script" not in shown
        assert not re.search(r"title='[^']*'[^>]*onerror", shown)


def test_inputs_and_settings_survive_a_restart_of_the_kernel(make, module):
    page = make()
    page.settings.source.value, page.settings.items.value = "own", "alpha\nbeta"
    page.settings.parts["text"].value, page.settings.gold.value = "my own words", "gold"
    page.settings.k.value, page.settings.temperature.value = 2, 0.3
    page.button.click()
    page.rows.shown[1].value = False
    again = playground(existing_run("r", page.play.run.folder.parent))
    assert again.settings.state(again.rows.edits) == page.settings.state(page.rows.edits)
    again.play.module = module
    again.button.click()
    assert [box.value for box in again.rows.shown[:2]] == [True, False]


def test_a_folder_that_cannot_be_written_loses_only_the_memory(make, monkeypatch):
    page = make()

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(playground_widgets, "keep_state", full)
    page.settings.k.value = 1
    assert "cannot be kept for the next start (No space left on device)" in text(page.status)
    page.button.click()
    assert page.error == ""


def test_a_stored_notebook_shows_the_page_where_widgets_are_not_shown(make):
    page = make()
    page.button.click()
    bundle = page._repr_mimebundle_()
    assert bundle["text/html"] == page.page.value
    assert "application/vnd.jupyter.widget-view+json" in bundle


@pytest.mark.slow
def test_the_bundled_model_answers_and_answers_again(new_run, tmp_path):
    from rpo_kit.rewriting.prepare import prepare

    run = new_run(TWEETS | {"base": "local:smollm2", "reflection.name": "smollm2", "reflection.max_seq_length": 1024})
    prepare(run)
    page = playground(run)
    page.button.click()
    assert page.error == ""
    first = page.answer.rewrite
    assert first.generic == page.play.users[page.settings.user.value]["generic"], "as prepare stored it"
    page.settings.parts["text"].value = "I missed the last tram home, so I walked."
    page.button.click()
    assert page.error == ""
    assert page.answer.rewrite.generic != first.generic


def test_the_label_above_a_control_is_its_name_too(make):
    settings = make().settings
    assert settings.user.tooltip == "user"
    assert settings.items.tooltip == "my items, one per line, in the form text"
    assert settings.asked.tooltip == "whose query"
    assert max(len(label) for label, _ in settings.asked.options) < 40
