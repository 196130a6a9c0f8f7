"""Settings are a typed tree: a dotted override reaches its field, anything else is rejected with one sentence."""

import dataclasses
import json
import re
import typing

import pytest

from rpo_kit.errors import KitError
from rpo_kit.presets import PRESETS, as_dict, flat, get_preset
from rpo_kit.setting_rules import check
from rpo_kit.training.curriculum import shots_plan


def test_strings_from_the_command_line_get_the_type_of_the_field():
    preset = get_preset(
        "cpu",
        {
            "rl.steps": "3",
            "rl.learning_rate": "1e-5",
            "reflection.load_in_4bit": "True",
            "sweep.arms": '["fixed-2", "random"]',
            "sweep.seeds": "[1, 2]",
            "data.task": "LaMP-5",
            "base": "openai:m",
        },
    )
    assert (preset.rl.steps, preset.rl.learning_rate) == (3, 1e-5)
    assert preset.reflection.load_in_4bit is True
    assert (preset.sweep.arms, preset.sweep.seeds) == (("fixed-2", "random"), (1, 2))
    assert (preset.data.task, preset.base) == ("LaMP-5", "openai:m")


def test_values_of_the_right_type_pass_unchanged():
    preset = get_preset("cpu", {"rl.steps": 3, "rl.beta": 0, "sweep.seeds": [1], "reflection.load_in_4bit": False})
    assert (preset.rl.steps, preset.rl.beta, preset.sweep.seeds) == (3, 0.0, (1,))
    assert isinstance(preset.rl.beta, float)


def test_an_override_changes_nothing_else_and_not_the_preset_itself():
    changed = get_preset("cpu", {"rl.steps": 3})
    assert dataclasses.replace(changed, rl=PRESETS["cpu"].rl) == PRESETS["cpu"]
    assert PRESETS["cpu"].rl.steps != 3


def test_the_error_for_an_unknown_preset_lists_the_presets():
    with pytest.raises(
        KitError, match="no preset 'gpu'; the presets are cpu, short, cpu-long, tiny, colab-t4, gpu-24gb, paper"
    ):
        get_preset("gpu")


def test_the_error_for_an_unknown_setting_lists_the_settings_of_its_group():
    with pytest.raises(KitError, match=r"no setting 'rl\.stepz'; in rl there are steps, algorithm, prompts_per_step"):
        get_preset("cpu", {"rl.stepz": 1})
    with pytest.raises(KitError, match=r"no setting 'reinforce\.steps'; the settings are data, base"):
        get_preset("cpu", {"reinforce.steps": 1})


@pytest.mark.parametrize("key", ["name", "about"])
def test_the_name_of_a_preset_is_not_a_setting(key):
    with pytest.raises(KitError, match=f"no setting '{key}'; the settings are data, base"):
        get_preset("cpu", {key: "foo"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rl.curriculum", "foo", "no curriculum 'foo': choose progressive"),
        ("sweep.arms", ["fixed-2", "fixed-0"], "no curriculum 'fixed-0'"),
        ("data.train_users", "0", "data.train_users=0 must be at least 1"),
        ("rl.steps", -1, "rl.steps=-1 must be at least 1"),
        ("rl.group_size", 1, "rl.group_size=1 must be at least 2"),
        ("rl.algorithm", "ppo", "no rl.algorithm='ppo'; there are reinforce"),
        ("evaluation.bootstrap", 0, "evaluation.bootstrap=0 must be at least 1"),
        ("sweep.seeds", [], "must be a list of at least one value"),
        ("data.train_users", 10**9, 'so "all users" is undefined: add --data official'),
    ],
)
def test_an_impossible_value_is_rejected_before_anything_is_written(key, value, message):
    with pytest.raises(KitError, match=message):
        get_preset("cpu", {key: value})


@pytest.mark.parametrize("plan", ["2,", "2,0", "2,x", "2,4,6", " 2, 3", "", "fixed", "fixed-0", "fixed-12", "random"])
def test_the_settings_accept_exactly_the_known_curricula(plan):
    def taken(make):
        try:
            return bool(make())
        except KitError:
            return False

    assert taken(lambda: get_preset("cpu", {"rl.curriculum": plan})) == taken(lambda: shots_plan(plan, 4))


@pytest.mark.parametrize(
    ("key", "what"),
    [("rl", "'rl' is a group of settings: name one"), ("base.name", "'base' is a single setting")],
)
def test_a_key_that_is_a_group_or_goes_too_deep_is_rejected(key, what):
    with pytest.raises(KitError, match=what):
        get_preset("cpu", {key: "1"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rl.steps", "many"),
        ("rl.steps", "2.5"),
        ("rl.steps", 2.5),
        ("rl.steps", "true"),
        ("rl.steps", "null"),
        ("rl.beta", "NaN"),
        ("rl.beta", "small"),
        ("reflection.load_in_4bit", "1"),
        ("reflection.load_in_4bit", "perhaps"),
        ("sweep.seeds", "5"),
        ("sweep.seeds", "[0.5]"),
        ("sweep.seeds", '["a"]'),
        ("sweep.arms", "fixed-2"),
        ("sweep.arms", '"fixed-2"'),
        ("sweep.arms", "[2]"),
    ],
)
def test_a_value_of_the_wrong_type_is_rejected_never_rounded_or_split(key, value):
    with pytest.raises(KitError, match=rf"{re.escape(key)}=.* is not (a whole number|a number|true or false|a list)"):
        get_preset("cpu", {key: value})


def test_what_the_paper_fixes_is_the_default():
    preset = get_preset("cpu")
    assert get_preset("paper").synthesis.shots == (1,), "a trajectory rests on one historical example"
    assert (preset.rl.shots_from, preset.rl.shots_to, preset.rl.curriculum) == (2, 6, "progressive")
    assert preset.evaluation.shots == 6


def test_a_number_of_shots_stands_for_a_list_of_one_as_in_older_runs():
    assert get_preset("cpu", {"synthesis.shots": 2}).synthesis.shots == (2,)
    assert get_preset("cpu", {"synthesis.shots": "[1, 3]"}).synthesis.shots == (1, 3)
    for wrong in ("0", "[]", "[1, 0]", "1.5", "one"):
        with pytest.raises(KitError, match=r"synthesis\.shots"):
            get_preset("cpu", {"synthesis.shots": wrong})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_used_for_training(name):
    preset = get_preset(name)
    assert preset.name == name
    assert preset.rl.micro_batch_tokens > preset.rl.group_size * preset.rl.max_new_tokens, "a group and its prompt"
    assert preset.rl.group_size > 1, "a baseline needs a group"
    assert preset.rl.shots_to <= preset.data.items_per_user


def test_the_dictionary_is_json_and_contains_every_field():
    plain = as_dict(get_preset("tiny"))
    assert json.loads(json.dumps(plain)) == plain
    assert plain.keys() == {field.name for field in dataclasses.fields(PRESETS["tiny"])}
    for name, kind in typing.get_type_hints(type(PRESETS["tiny"])).items():
        if dataclasses.is_dataclass(kind):
            assert plain[name].keys() == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_obeys_the_rules(preset):
    check(flat(PRESETS[preset]))


def test_every_setting_with_a_number_has_a_range():
    """A new setting has a range, or is listed here with the reason why any number will do."""
    any_number = {"data.seed", "sft.seed", "rl.seed", "evaluation.seed", "sweep.seeds", "sweep.eval_shots"}
    numbers = {
        key for key, value in flat(get_preset("cpu")).items() if type(value) in (int, float) and key not in any_number
    }
    for key in numbers:
        with pytest.raises(KitError, match=re.escape(key)):
            check(flat(get_preset("cpu")) | {key: -1})


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("rl.temperature", "0", "above 0"),
        ("rl.max_new_tokens", "0", "at least 1"),
        ("rl.max_new_tokens", "5000", "leaves no room for a prompt"),
        ("evaluation.max_new_tokens", "1024", "leaves no room for a prompt"),
        ("rl.shots_from", "9", "must not be greater than rl.shots_to=6"),
        ("rl.format_weight", "1.5", "share between 0 and 1"),
        ("endpoint.tolerate", "2", "share between 0 and 1"),
        ("endpoint.concurrency", "0", "at least 1"),
        ("endpoint.timeout", "0", "above 0"),
        ("sft.warmup", "-1", "share between 0 and 1"),
        ("reflection.lora_rank", "0", "at least 1"),
        ("reflection.lora_targets", "[]", "at least one value"),
        ("sweep.eval_shots", "[-1]", "at least 0"),
        ("sweep.eval_shots", "[2, 2]", "without repeated values"),
        ("sweep.seeds", "[0, 0]", "without repeated values"),
        ("sweep.seeds", "[0, 18446744073709551616]", r"below 2\*\*64"),
        ("rl.seed", "18446744073709551616", r"below 2\*\*64"),
        ("sft.seed", "-1", "from 0 to 4294967295"),
        ("sft.seed", "4294967296", "from 0 to 4294967295"),
        ("evaluation.seed", "-1", "at least 0"),
        ("sweep.arms", '["random", "random"]', "without repeated values"),
        ("evaluation.systems", "[]", "at least one value"),
        ("evaluation.systems", '["bse"]', "There is no system 'bse'"),
        ("evaluation.systems", '["context-"]', "There is no system 'context-'"),
        ("evaluation.systems", '["pag"]', "There is no system 'pag'"),
        ("evaluation.systems", '["lead-0"]', "There is no system 'lead-0'"),
        ("evaluation.shots", "-1", "at least 0"),
        ("data.retriever", "bm52", "There is no retriever 'bm52'"),
        ("data.retriever", "dense:", "There is no retriever 'dense:'"),
        ("base", "gpt-4o", "base='gpt-4o' does not name a model"),
        ("base", "persona", "base='persona' does not name a model"),
        ("base", "local:", "does not name a model"),
        ("synthesis.teacher", "none", "write rules, persona, hindsight, hindsight-shown, local:NAME"),
    ],
)
def test_an_impossible_combination_is_rejected_and_the_error_says_what_would_work(key, value, why):
    with pytest.raises(KitError, match=why):
        get_preset("cpu", {key: value})


def test_the_parts_of_the_reward_are_at_most_all_of_it():
    assert get_preset("cpu", {"rl.content_weight": 0.9}).rl.content_weight == 0.9
    with pytest.raises(KitError, match=r"rl\.format_weight=0\.1 and rl\.content_weight=0\.95 are shares of the reward"):
        get_preset("cpu", {"rl.content_weight": 0.95})


@pytest.mark.parametrize(
    ("key", "value", "form"),
    [
        (
            "components.arms",
            "[1, 2]",
            '[1, 2]\' is not a list of names: write it as JSON, as in \'components.arms=["a", "b"]',
        ),
        ("components.arms", '{"a": 1}', "is not a list of names"),
        ("components.arms", "all", "'all' is not a list of names"),
        ("sweep.seeds", '["a"]', "is not a list of whole numbers: write it as JSON, as in 'sweep.seeds=[2, 6]'"),
    ],
)
def test_a_list_of_the_wrong_kind_is_refused_with_what_was_given_and_the_form(key: str, value: str, form: str) -> None:
    with pytest.raises(KitError) as told:
        get_preset("cpu", {key: value})
    assert form in str(told.value)
