"""Pages, the live plot and the three browsers, clicked without a screen."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from rpo_kit.lamp.personas import build
from rpo_kit.lamp.tasks import get_task
from rpo_kit.study import html, widgets

TASK = get_task("LaMP-3")


@pytest.fixture(scope="module")
def examples():
    return [row | {"generic": "3"} for row in build("LaMP-3", "dev", 3, items_per_user=5)]


def record(example, item, **rest):
    return {
        "id": f"{example['id']}/0",
        "example": example["id"],
        "first": 1,
        "items": [example["profile"][item]["id"]],
    } | rest


def accepted(example, item=0):
    return record(example, item, observe="[1] reads 2, gave 1: harsh", plan="give 2", rewrite="2")


# ---- html --------------------------------------------------------------------------------------------------------


def test_what_a_user_wrote_is_shown_and_never_interpreted(examples):
    item = {"id": "9", "text": "<script>alert(1)</script>", "score": "1"}
    assert "<script>" not in html.item_lines(TASK, [item])
    assert "&lt;script&gt;" in html.item_lines(TASK, [item])
    assert "<b>x</b>" not in html.show_table(pd.DataFrame({"a": ["<b>x</b>"]})).data
    assert "<i>" not in html.tokens_html("<i>", "<i>")


def test_items_are_numbered_by_their_rank(examples):
    lines = html.item_lines(TASK, examples[0]["profile"][:2], first=4)
    assert "[4] " in lines
    assert "[5] " in lines
    assert html.item_lines(TASK, []) == "<i>no items</i>"


def test_items_that_every_retriever_finds_are_bold(examples):
    both = html.retrieved_html(TASK, examples[0], ["recency", "recency"], k=2)
    assert both.count("<b>[") == 2
    whole_profile = html.retrieved_html(TASK, examples[0], ["recency", "random"], k=5)
    assert whole_profile.count("<b>[") == 10
    assert "bold: the 5 found by all of them" in whole_profile
    assert "<b>[" not in html.retrieved_html(TASK, examples[0], ["recency"], k=5), "with one, bold would say nothing"


def test_a_page_says_so_if_no_item_is_bold(examples):
    shown = html.retrieved_html(TASK, examples[0], ["recency", "random"], k=1)
    bold = shown.count("<b>[") // 2
    assert f"bold: the {bold} found" in shown if bold else "so none is bold" in shown
    pages = [html.retrieved_html(TASK, example, ["recency", "random", "bm25"], k=1) for example in examples]
    assert any("no item is found by all of them, so none is bold" in page and "<b>[" not in page for page in pages)
    assert "bold" not in html.retrieved_html(TASK, examples[0], ["recency"], k=2)


def test_a_table_keeps_numbers_whole_and_lets_long_texts_and_names_of_columns_give_way():
    table = html.show_table(pd.DataFrame({"difference_low": [-0.5], "query": ["nineteen characters"]})).data
    number, text = table.split("<tbody>")[1].split("</td>")[:2]
    assert "white-space:nowrap" in number
    assert "overflow-wrap:anywhere" in text
    assert ">difference_<wbr>low<" in table


def test_a_trajectory_is_shown_with_its_items_and_the_hidden_habit(examples):
    shown = html.trajectory_html(TASK, accepted(examples[0]), examples[0])
    for part in ("accepted", "reads 2, gave 1: harsh", examples[0]["facts"]["habit"]["name"], "give 2"):
        assert part in shown
    rejected = record(examples[0], 0, text="", reason="no tags")
    assert "rejected: no tags" in html.trajectory_html(TASK, rejected, examples[0])


def test_the_habit_of_a_lamp_user_is_unknown(examples):
    assert html.hidden_habit(examples[0] | {"facts": {}}) == "unknown (no personas)"


def test_the_comparison_scores_each_system_for_each_user(examples):
    golds = [example["output"] for example in examples]
    table = html.comparison_table(TASK, examples, {"right": golds, "none": ["?"] * 3})
    assert table["right score"].tolist() == [1.0, 1.0, 1.0]
    assert (table["none score"] < 1).all()


def test_the_habit_check_counts_accepted_and_rejected(examples):
    example, facts = examples[0], examples[0]["facts"]
    rules = html.persona("LaMP-3")
    shows = [
        rules.shown_habit(item, facts["items"][item["id"]]) == facts["habit"]["name"] for item in example["profile"]
    ]
    records = [
        accepted(example, n) if show else record(example, n, reason="x", text="") for n, show in enumerate(shows)
    ]
    table = html.habit_check(TASK, records, {example["id"]: example})
    assert table["accepted"].tolist() == [sum(shows), 0]
    assert table["rejected"].tolist() == [0, len(shows) - sum(shows)]


def test_the_overlap_of_retrievers_is_measured_against_the_first_one(examples):
    table = html.overlap_table(TASK, examples, ["bm25", "bm25-lamp", "recency"], k=2)
    assert table["bm25"].tolist() == [1.0]
    assert 0 <= table["recency"].item() < 1
    whole_profiles = html.overlap_table(TASK, examples, ["bm25", "recency", "random"], k=5)
    assert whole_profiles.to_numpy().tolist() == [[1.0, 1.0, 1.0]]


def test_the_overlap_pools_the_items_of_all_users():
    """BM25 ranks by the shared word, recency from the end; of 2 + 1 items both put 1 + 1 among the first two."""
    rows = [{"id": "1", "input": TASK.make_input(text="rain"), "profile": profile(3)}]
    rows.append({"id": "2", "input": TASK.make_input(text="rain"), "profile": profile(1)})
    table = html.overlap_table(TASK, rows, ["bm25", "recency"], k=2)
    assert table["recency"].item() == pytest.approx(2 / 3)


def profile(items):
    """The first item shares its word with the query "rain"; of the others, which share none, the last comes first."""
    return [{"id": str(n), "text": "rain" if n == 0 else "sun", "score": "3"} for n in range(items)]


def test_the_preset_table_counts_what_costs_time():
    table = html.preset_table().set_index("preset")
    assert table.loc["tiny", "SFT sequences"] == 3 * 2 * 1
    assert table.loc["tiny", "RL completions"] == 2 * 1 * 2


def test_tables_show_numbers_to_three_places_and_nothing_for_what_is_missing():
    shown = html.show_table(pd.DataFrame({"score": [0.12345, None], "kept": [True, False]}), "a caption").data
    for part in ("a caption", ">0.123<", ">yes<", ">no<"):
        assert part in shown
    assert "nan" not in shown


# ---- the live plot ------------------------------------------------------------------------------------------------


class Clock:
    """Advances only as the test says."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def shown(monkeypatch):
    class Handle:
        updates = 0

        def update(self, _):
            self.updates += 1

    handle = Handle()
    monkeypatch.setattr(widgets, "display", lambda *_, **__: handle)
    return handle


def test_drawing_takes_at_most_a_twentieth_of_the_time(shown):
    clock, drawn = Clock(), []

    def draw(rows):
        drawn.append(len(rows))
        clock.now += 1.0  # a drawing that takes a second
        return Figure(figsize=(1, 1))

    plot = widgets.LivePlot(draw, clock)
    for step in range(1, 101):
        plot([{"step": float(s)} for s in range(step)])
        clock.now += 1.0
    assert plot.frames == len(drawn) <= 6  # 1 + 100 steps / 20
    assert shown.updates == len(drawn) - 1


def test_the_last_rows_are_drawn_after_training(shown):
    clock, drawn = Clock(), []

    def draw(rows):
        drawn.append(len(rows))
        clock.now += 1.0
        return Figure(figsize=(1, 1))

    plot = widgets.LivePlot(draw, clock)
    plot([{"step": 1.0}])
    plot([{"step": 1.0}, {"step": 2.0}])  # too early: kept back
    assert drawn == [1]
    plot.finish()
    plot.finish()
    assert drawn == [1, 2]


def test_a_finished_stage_draws_nothing(shown):
    plot = widgets.live_plot(lambda rows: Figure())
    plot.finish()
    assert plot.frames == 0


# ---- browsers -----------------------------------------------------------------------------------------------------


def test_trajectories_are_paged_through_by_clicking(examples):
    good = [accepted(examples[0]), accepted(examples[1])]
    bad = [record(examples[2], 1, text="", reason="no tags")]
    browser = widgets.trajectory_browser(TASK, good, bad, examples)
    assert "1 of 2" in browser.page.value
    browser.next.click()
    assert "2 of 2" in browser.page.value
    assert html.item_lines(TASK, examples[1]["profile"][:1]) in browser.page.value
    browser.next.click()  # the last page stays
    assert "2 of 2" in browser.page.value
    browser.previous.click()
    assert "1 of 2" in browser.page.value


def test_choosing_a_reason_shows_the_trajectories_rejected_for_it(examples):
    good = [accepted(examples[0]), accepted(examples[1])]
    bad = [record(examples[2], 1, text="", reason="no tags")]
    browser = widgets.trajectory_browser(TASK, good, bad, examples)
    browser.next.click()
    browser.group.value = "rejected: no tags (1)"
    assert browser.number.value == 1
    assert "rejected: no tags" in browser.page.value
    browser.group.value = "accepted (2)"
    assert "1 of 2" in browser.page.value


def test_without_trajectories_the_browser_says_so():
    assert "no trajectories yet" in widgets.trajectory_browser(TASK, [], [], []).page.value


def test_the_user_browser_follows_user_retriever_and_k(examples):
    browser = widgets.user_browser(examples, TASK, k=2)
    assert examples[0]["user_id"] in browser.page.value
    browser.user.value = 2
    assert examples[2]["user_id"] in browser.page.value
    browser.retrievers.value = ("recency",)
    browser.k.value = 5
    assert browser.page.value == html.retrieved_html(TASK, examples[2], ["recency"], 5)
    browser.retrievers.value = ()
    assert "at least one retriever" in browser.page.value


def test_k_cannot_exceed_the_longest_profile(examples):
    assert widgets.user_browser(examples, TASK, k=9).k.value == 5


def rollout(example, step, completion, **rest):
    values = {"step": step, "k": 2, "example": example["id"], "completion": completion, "rewrite": "2"}
    values |= {"text": f"<plan>{step}/{completion}</plan>", "parse_error": None, "cited": [1, 2], "reward": 0.775}
    return values | {"score": 0.75, "format": 1.0, "advantage": 1.25, "tokens": 40, "ended": True} | rest


@pytest.fixture
def ranked(examples):
    return [example | {"ranking": [3, 0, 1, 2, 4]} for example in examples]


def test_the_samples_of_a_prompt_are_side_by_side_with_their_rewards(ranked):
    unparsed = {"rewrite": None, "parse_error": "no <plan>", "cited": [], "text": "", "reward": 0.0, "ended": False}
    group = [rollout(ranked[0], 3, 0), rollout(ranked[0], 3, 1, advantage=-1.25, **unparsed)]
    shown = html.rollouts_html(TASK, group, ranked[0])
    for part in ("reward 0.775", "advantage +1.25", "score 0.750, format 1", "cites [1], [2]", "40 tokens<"):
        assert part in shown
    for part in ("advantage -1.25", "does not parse:</b> no &lt;plan&gt;", "cites nothing", "40 tokens, cut off"):
        assert part in shown
    assert "&lt;plan&gt;3/0&lt;/plan&gt;" in shown
    assert "<plan>" not in shown
    assert f"gold: <b>{ranked[0]['output']}</b>" in shown
    assert html.item_lines(TASK, [ranked[0]["profile"][3], ranked[0]["profile"][0]]) in shown  # the k best-ranked


def test_rollouts_are_browsed_by_step_and_prompt(ranked):
    first = [rollout(ranked[n], 1, i) for n in (0, 1) for i in (0, 1)]
    second = [rollout(ranked[n], 2, i) for n in (2, 2, 0) for i in (0, 1)]  # one example twice: two prompts
    browser = widgets.rollout_browser(first + second, ranked, TASK)
    assert "step 1, prompt 1 of 2" in browser.page.value
    assert "1/0" in browser.page.value
    assert "1/1" in browser.page.value
    browser.step.value = 2
    browser.prompt.value = 3
    assert "step 2, prompt 3 of 3" in browser.page.value
    assert browser.page.value.count("<pre") == 2
    browser.step.value = 1
    assert browser.prompt.value == 2  # there is no third prompt
    assert "step 1, prompt 2 of 2" in browser.page.value


def test_without_rollouts_the_browser_says_so():
    assert "no rollouts yet" in widgets.rollout_browser([], [], TASK).page.value


def test_a_stored_notebook_shows_a_browsers_page_where_widgets_are_not_shown(examples, ranked):
    browsers = [
        widgets.user_browser(examples, TASK),
        widgets.trajectory_browser(TASK, [accepted(examples[0])], [], examples),
        widgets.rollout_browser([rollout(ranked[0], 1, 0)], ranked, TASK),
    ]
    for browser in browsers:
        bundle = browser._repr_mimebundle_()
        assert bundle["text/html"] == browser.page.value
        assert bundle[widgets.VIEW] == browser.widget._repr_mimebundle_()[widgets.VIEW]
        assert "VBox" not in str(bundle)


def test_a_browser_can_be_shown_with_ipywidgets_7_too(examples, monkeypatch):
    """Colab's ipywidgets 7.7 has no Widget._repr_mimebundle_."""
    monkeypatch.delattr(widgets.w.Widget, "_repr_mimebundle_")
    browser = widgets.user_browser(examples, TASK)
    assert browser._repr_mimebundle_()[widgets.VIEW]["model_id"] == browser.widget.model_id


# ---- the report on synthesis --------------------------------------------------------------------------------------


def test_outcomes_are_counted_with_their_shares(examples):
    good = [accepted(examples[0])] * 2 + [accepted(examples[0]) | {"complaint": "no tags"}]
    table = html.acceptance_table(good, [record(examples[0], 0, text="", reason="no tags")]).set_index("outcome")
    assert table["count"].to_dict() == {"accepted": 2, "accepted on the second attempt": 1, "no tags": 1}
    assert table["share"].to_dict() == {"accepted": 0.5, "accepted on the second attempt": 0.25, "no tags": 0.25}


def test_lengths_and_cited_items_are_summed_up_as_smallest_median_largest(examples):
    long = accepted(examples[0]) | {"observe": "[1] a\n[2] d", "plan": "give 2 at once"}
    table = html.trajectory_table([accepted(examples[0]), long]).set_index("")
    assert table.loc["words in observe"].tolist() == [4, 5, 6]
    assert table.loc["words in plan"].tolist() == [2, 3, 4]
    assert table.loc["items cited"].tolist() == [1, 1.5, 2]


def test_a_second_attempt_and_a_corrected_rewrite_are_shown_on_the_page(examples):
    changed = accepted(examples[0]) | {"complaint": "no tags", "wrote": "2!"}
    shown = html.trajectory_html(TASK, changed, examples[0])
    assert "on the second attempt (first attempt: no tags); the teacher wrote &#x27;2!&#x27;" in shown


# ---- controls ----------------------------------------------------------------------------------------------------


def test_every_control_of_a_browser_has_a_name_and_its_arrow_is_seen_in_the_dark(examples):
    for browser in (
        widgets.user_browser(examples, TASK),
        widgets.trajectory_browser(TASK, [accepted(examples[0])], [], examples),
        widgets.rollout_browser([], examples, TASK),
    ):
        controls, _, style = browser.widget.children
        assert all(control.description for control in controls.children)
        assert "[data-jp-theme-light=false]" in style.value
        assert "--jp-widgets-dropdown-arrow:url(data:image/svg+xml;base64," in style.value
