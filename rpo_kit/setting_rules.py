"""Which settings are valid: ranges, names and combinations, checked before anything is stored or computed.

One table per kind of rule, by dotted key. A rule belongs here if breaking it would fail, or make a result meaningless,
only several stages later.

    check({"rl.temperature": 0.0, …})      # KitError: rl.temperature=0.0 must be above 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from operator import le
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.model_spec import parse_spec, recorded_files, rollout_server

ALGORITHMS = ("reinforce++-baseline", "reinforce++", "grpo", "rloo")
STARTS = ("sft", "untrained")
CURRICULA = (
    "progressive, reversed, random, fixed-K such as fixed-4, or a list such as 2,2,3,6, each of whose values is used "
    "for an equal share of the steps"
)
RETRIEVER_FORMS = "bm25, bm25-lamp, recency, random, or dense:ENCODER as in dense:facebook/contriever"
RULE_TEACHERS = ("rules", "persona", "hindsight", "hindsight-shown")
MODEL_FORMS = "local:NAME, openai:MODEL, or http://HOST:PORT/v1#MODEL"
SECTIONS = ("observe", "plan", "rewrite")  # the parts of a trajectory, in this order
ARM_NAMES = (  # of the component study, in study/arms.py
    *("full", "no-sft", "no-rl", "no-observe", "no-plan", "rewrite-only", "no-generic", "sft-1-item", "sft-6-items"),
    *("recency", "random", "reinforce++", "grpo", "rloo", "no-format", "half-format"),
)
# beginnings of settings of training that change memory, time or files alone
MOVE_NO_SCORE = ("rl.rollouts", "rl.save_every", "sft.save_every", "rl.micro_batch_tokens", "rl.gradient_checkpointing")
TRIVIAL = ("echo", "lead", "constant", "majority", "copy-nearest")  # baselines without a model
SYSTEM_FORMS = f"base, context, context-K, pag-K, {', '.join(TRIVIAL)}, lead-N, untrained, sft, rl, sft-K, rl-K"
ALL_USERS = 10**9  # as many as LaMP's files hold

_AT_LEAST = {
    1: "data.train_users data.dev_users data.items_per_user base_max_new_tokens reflection.lora_rank "
    "reflection.lora_alpha synthesis.per_query synthesis.max_words sft.steps sft.batch_size "
    "sft.accumulate sft.save_every rl.steps rl.prompts_per_step rl.micro_batch_tokens rl.max_new_tokens rl.shots_from "
    "rl.save_every evaluation.max_new_tokens evaluation.batch_size evaluation.bootstrap sweep.steps "
    "sweep.prompts_per_step sweep.dev_users components.steps components.prompts_per_step components.dev_users "
    "endpoint.concurrency endpoint.tries",
    0: "data.leave_one_out rl.beta rl.clip rl.rollouts_mb evaluation.shots endpoint.backoff endpoint.thinking_tokens "
    "endpoint.max_requests endpoint.max_tokens endpoint.max_cost sweep.difference",
    64: "reflection.max_seq_length",
}
_ABOVE_ZERO = "sft.learning_rate rl.learning_rate rl.temperature endpoint.timeout"
_SHARES = (
    "synthesis.match_text sft.warmup rl.warmup rl.format_weight rl.content_weight evaluation.keep_content "
    "endpoint.tolerate"
)
_LISTS = (
    "reflection.lora_targets reflection.sections evaluation.systems sweep.arms sweep.seeds sweep.eval_shots "
    "components.arms components.seeds"
)
_CURRICULUM = re.compile(r"progressive|reversed|random|fixed-0*[1-9]\d*|\s*0*[1-9]\d*\s*(,\s*0*[1-9]\d*\s*)+")
_RETRIEVER = re.compile(r"bm25|bm25-lamp|recency|random|dense:.+")
SYSTEM = re.compile(rf"base|untrained|(sft|rl)(-\d+)?|{'|'.join(TRIVIAL)}|lead-0*[1-9]\d*|context(-\d+)?|pag-\d+")


def kind_of(system: str) -> str:
    """The name of an evaluated system without its number: "lead" for "lead-12"."""
    kind, _, number = system.rpartition("-")
    return kind if number.isdecimal() else system


def check(settings: Mapping[str, Any]) -> None:
    """Raise KitError for the first invalid setting; `settings` are by dotted key."""
    for least, keys in _AT_LEAST.items():
        for key in keys.split():
            _require(settings, key, partial(le, least), f"at least {least}")
    for key in _ABOVE_ZERO.split():
        _require(settings, key, lambda value: value > 0, "above 0")
    for key in _SHARES.split():
        _require(settings, key, lambda value: 0 <= value <= 1, "a share between 0 and 1")
    for key in _LISTS.split():
        _require(settings, key, bool, "a list of at least one value")
        _require(settings, key, lambda value: len(set(value)) == len(value), "a list without repeated values")
    _require(settings, "data.dev_share", lambda value: 0 <= value < 1, "at least 0 and below 1: it is a share of users")
    sections = [name for name in SECTIONS if name in (*settings["reflection.sections"], "rewrite")]
    if list(settings["reflection.sections"]) != sections:
        raise KitError(
            f"reflection.sections={list(settings['reflection.sections'])} must be parts of {list(SECTIONS)}, in this "
            "order, and rewrite among them."
        )
    _require(settings, "sweep.eval_shots", lambda value: min(value) >= 0, "a list of numbers of at least 0")
    _require(settings, "synthesis.shots", lambda value: min(value, default=0) >= 1, "a list of numbers of at least 1")
    _require(settings, "sft.seed", lambda value: 0 <= value < 2**32, "from 0 to 4294967295")  # NumPy's
    _require(settings, "evaluation.seed", lambda value: value >= 0, "at least 0")
    lists = ("sweep.seeds", "components.seeds")
    for key, seeds in [("rl.seed", [settings["rl.seed"]]), *((name, settings[name]) for name in lists)]:
        _require({key: seeds}, key, lambda values: all(-(2**63) <= n < 2**64 for n in values), "below 2**64")  # torch's
    _require(
        settings,
        "rl.group_size",
        lambda value: value >= 2,
        "at least 2: a completion is compared with the others of its group",
    )
    _check_names(settings)
    _check_combinations(settings)


def _require(settings: Mapping[str, Any], key: str, fits: Callable[[Any], bool], wanted: str) -> None:
    if not fits(settings[key]):
        raise KitError(f"{key}={settings[key]} must be {wanted}.")


def _check_names(settings: Mapping[str, Any]) -> None:
    if settings["rl.start"] not in STARTS:
        raise KitError(f"There is no rl.start={settings['rl.start']!r}; there are {' and '.join(STARTS)}.")
    if settings["rl.algorithm"] not in ALGORITHMS:
        raise KitError(f"There is no rl.algorithm={settings['rl.algorithm']!r}; there are {', '.join(ALGORITHMS)}.")
    if settings["rl.rollouts"] != "local" and rollout_server(settings["rl.rollouts"]) is None:
        raise KitError(
            f"rl.rollouts={settings['rl.rollouts']!r} does not say where completions are sampled: write local, or "
            "vllm:http://HOST:PORT."
        )
    for arm in settings["components.arms"]:
        if arm not in (*ARM_NAMES, "all") and "=" not in arm:
            raise KitError(
                f"There is no arm {arm!r} for components.arms: choose from {', '.join(ARM_NAMES)} and all, or write a "
                "setting as KEY=VALUE."
            )
    for plan in (settings["rl.curriculum"], *settings["sweep.arms"]):
        if not _CURRICULUM.fullmatch(plan):
            raise KitError(f"There is no curriculum {plan!r}: choose {CURRICULA}.")
    if not _RETRIEVER.fullmatch(settings["data.retriever"]):
        raise KitError(f"There is no retriever {settings['data.retriever']!r}; there are {RETRIEVER_FORMS}.")
    for system in settings["evaluation.systems"]:
        if not SYSTEM.fullmatch(system):
            raise KitError(f"There is no system {system!r} to evaluate; there are {SYSTEM_FORMS}.")
    for key in ("base", "synthesis.teacher"):
        spec = settings[key]
        rules = RULE_TEACHERS if key == "synthesis.teacher" else ()
        recorded = "TRAJECTORIES.jsonl for trajectories" if rules else "PREDICTIONS.json for recorded answers"
        local = spec.startswith("local:") and spec != "local:"
        if not local and spec not in rules and not recorded_files(spec) and parse_spec(spec) is None:
            forms = ", ".join((*rules, MODEL_FORMS))
            raise KitError(f"{key}={spec!r} does not name a model: write {forms}, or file:{recorded}.")


def _check_combinations(settings: Mapping[str, Any]) -> None:
    first, last = settings["rl.shots_from"], settings["rl.shots_to"]
    if first > last:
        raise KitError(f"rl.shots_from={first} must not be greater than rl.shots_to={last}: the history grows.")
    if settings["rl.format_weight"] + settings["rl.content_weight"] > 1:
        raise KitError(
            f"rl.format_weight={settings['rl.format_weight']} and rl.content_weight={settings['rl.content_weight']} "
            "are shares of the reward, and more than all of it: lower one."
        )
    window = settings["reflection.max_seq_length"]
    for key in ("rl.max_new_tokens", "evaluation.max_new_tokens"):
        if settings[key] >= window:
            raise KitError(
                f"{key}={settings[key]} leaves no room for a prompt in reflection.max_seq_length={window}: lower the "
                "first or raise the second."
            )
    if settings["data.dev_share"] and settings["data.source"] in ("personas", "official"):
        raise KitError(
            f"data.dev_share={settings['data.dev_share']:g} divides the users of a folder with only one split, but "
            f"{settings['data.source']} has both: set data.dev_share=0, or add --data FOLDER."
        )
    users = (settings["data.train_users"], settings["data.dev_users"])
    if settings["data.source"] == "personas" and ALL_USERS in users:
        raise KitError(
            'This preset uses all users of LaMP\'s files, but personas are generated, so "all users" is undefined: add '
            "--data official, or set data.train_users and data.dev_users."
        )
