"""Every setting of the kit in one tree of frozen dataclasses; comments name the source of each value.

Sources: *paper* (abstract or figures of RPO, arXiv 2511.05286), *LaMP*, *OpenRLHF* (its REINFORCE++-baseline script),
*measured* (tests/benchmarks, on the machine named in docs/benchmarks.md) or *ours*. The paper's tables were not
available, so its learning rates, batch sizes and models are unknown.

    >>> get_preset("cpu").rl.shots_to
    6
    >>> get_preset("cpu", {"rl.steps": "3"}).rl.steps
    3
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from rpo_kit.errors import KitError
from rpo_kit.model_spec import refuse_secrets
from rpo_kit.setting_rules import ALL_USERS, SECTIONS, TRIVIAL, check
from rpo_kit.setting_values import replaced

_ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class DataSettings:
    source: str = "personas"  # ours: the embedded benchmark; or official (downloads), or a folder with LaMP's files
    separation: str = "user"  # LaMP: its user split, or its time split; for source = official
    drop_gold: bool = False  # ours: remove items that reveal the gold from the profiles; LaMP leaves them in
    task: str = "LaMP-7"  # measured: of LaMP-1, 3 and 7 the one on which a short demo shows most
    train_users: int = 400  # ours
    dev_users: int = 100  # ours: intervals of about +-0.05 on a 0..1 score
    items_per_user: int = 12  # ours; LaMP's profiles hold 15 to 200 items on average
    retriever: str = "bm25"  # LaMP; or bm25-lamp (LaMP's order of ties), dense:facebook/contriever, recency, random
    seed: int = 0  # ours: of personas, splits and random retrieval
    leave_one_out: int = 0  # ours: items per train user that become examples too
    # ours: for a folder with only one split, the share of its users that becomes dev
    dev_share: float = field(default=0.0, metadata={"since": "0.2"})


@dataclass(frozen=True)
class ModelSettings:
    name: str = "smollm2"  # the bundled SmolLM2-135M-Instruct; or a hub id or folder
    load_in_4bit: bool = False  # paper: unknown. QLoRA (arXiv 2305.14314); slower on a CPU (measured)
    max_seq_length: int = 1024  # ours: tokens
    lora_rank: int = 16  # ours
    lora_alpha: int = 32  # ours
    lora_targets: tuple[str, ...] = _ALL_LINEAR  # measured: a step takes 1.1 times as long as with q and v alone
    # paper: observe, plan and rewrite; without observe or plan, or both, to measure what a part contributes
    sections: tuple[str, ...] = field(default=SECTIONS, metadata={"since": "0.2"})
    # paper: the generic answer is rewritten; false: the module answers from query and history alone
    sees_generic: bool = field(default=True, metadata={"since": "0.2"})


@dataclass(frozen=True)
class SynthesisSettings:
    # ours: rules (persona for personas, hindsight for other data), or persona, hindsight, hindsight-shown (rewrites
    # tweets only as far as the history shows); local:NAME, openai:MODEL, URL#MODEL, or file:JSONL
    teacher: str = "rules"
    # items per trajectory, in turn. Paper: [1], a generic response and *a* historical example. Ours, measured: a module
    # that has only seen one item cites only one, and gets worse with more (docs/results.md)
    shots: tuple[int, ...] = field(default=(1, 3, 6), metadata={"a number too": True})
    per_query: int = 3  # ours: trajectories per query, each on the next items of its ranking, numbered by their rank
    match_text: float = 0.9  # ours: lowest accepted ROUGE of a chat teacher's rewrite with the gold
    max_words: int = 200  # ours: of the whole trajectory


@dataclass(frozen=True)
class SFTSettings:
    steps: int = 60  # ours: what the demo has time for
    batch_size: int = 2  # sequences in one pass. Measured: 2 x 4, sorted by length within a step, pad 21 % less than 8
    accumulate: int = 4  # passes per step
    learning_rate: float = 1e-3  # measured: LoRA on 135M; larger models want 2e-4
    warmup: float = 0.05  # ours: share of the steps
    save_every: int = 50  # ours: steps
    seed: int = 0  # ours


@dataclass(frozen=True)
class RLSettings:
    steps: int = 6  # ours: what the demo has time for
    algorithm: str = "reinforce++-baseline"  # paper; or reinforce++, grpo, rloo
    prompts_per_step: int = 16  # OpenRLHF: 128. Measured: with 6, no gain in 20 steps (MDE 0.030; docs/results.md)
    group_size: int = 8  # OpenRLHF
    # ours: tokens scored in one pass, in whole groups; affects memory only, so training resumes with another value
    micro_batch_tokens: int = field(default=3000, metadata={"memory": True})
    # keep one tensor per layer and token, and compute the rest twice; affects memory and time only
    gradient_checkpointing: bool = field(default=False, metadata={"memory": True})
    learning_rate: float = 1e-4  # measured: LaMP-1 and LaMP-3 failed at 2e-4 (docs/results.md) and want 3e-5 to 6e-5
    warmup: float = field(default=0.0, metadata={"since": "0.2"})  # share of the steps; OpenRLHF: 0.03 of many more
    beta: float = 0.001  # ours; OpenRLHF's k2 loss uses 1e-5, ProRL 1e-4
    clip: float = 0.2  # OpenRLHF
    temperature: float = 1.0  # OpenRLHF
    # ours: local, or vllm:http://HOST:8000: completions come from a vLLM server, which is sent the adapter before every
    # step (docs/scale.md). Another address is not another setting: training resumes with it
    rollouts: str = field(default="local", metadata={"since": "0.2", "address": True})
    # measured: 160, a little more than the persona teacher's longest text, cut off some rewrites of six items
    max_new_tokens: int = 200
    shots_from: int = 2  # paper
    shots_to: int = 6  # paper
    curriculum: str = "progressive"  # paper; or fixed-K, random, reversed, or a list as in "2,4,6"
    format_weight: float = 0.1  # ours: share of the reward for a well-formed trajectory
    # ours: share of the reward for the content that the rewrite keeps; for tasks whose answers are texts
    content_weight: float = field(default=0.0, metadata={"since": "0.2"})
    save_every: int = 5  # ours: steps
    start: str = field(default="sft", metadata={"since": "0.2"})  # paper: the SFT adapter; or untrained: without SFT
    rollouts_mb: float = 200.0  # ours: size up to which rl/rollouts.jsonl grows
    seed: int = 0  # ours


@dataclass(frozen=True)
class EvaluationSettings:
    shots: int = 6  # paper: where the curriculum ends
    max_new_tokens: int = 200  # as rl.max_new_tokens
    batch_size: int = 64  # ours: prompts at a time
    # measured (docs/results.md): the personalizer and serve use the generic answer in place of a tweet that keeps less
    # of the content in fewer than half as many words, or if the profile is empty; evaluate only counts these. 0: never
    keep_content: float = field(default=0.35, metadata={"since": "0.2"})
    bootstrap: int = 2000  # ours: resamples
    # echo, lead, constant, majority and copy-nearest cost nothing, and those that a task does not have are left out;
    # context-K and pag-K ask the base model again for every user
    systems: tuple[str, ...] = ("base", *TRIVIAL, "context", "untrained", "sft-1", "sft", "rl-1", "rl")
    seed: int = 0  # ours: of the bootstrap


@dataclass(frozen=True)
class SweepSettings:
    arms: tuple[str, ...] = (
        "fixed-2",
        "fixed-4",
        "fixed-6",
        "random",
        "progressive",
    )  # paper: fixed against progressive
    seeds: tuple[int, ...] = (0,)  # ours: a demo; a claim takes three or more
    steps: int = 2  # ours: a demo; enough to see that it works, too few to rank the arms
    prompts_per_step: int = 2  # ours: a demo; runs meant to learn something take more
    eval_shots: tuple[int, ...] = (6,)  # ours: a demo
    dev_users: int = 12  # ours: a demo
    # ours: the difference that the sweep is meant to find, from `plan`; recorded with the comparisons; 0: none named
    difference: float = field(default=0.0, metadata={"since": "0.2"})


@dataclass(frozen=True)
class ComponentsSettings:
    """The component study (`sweep --grid components`)."""

    # ours: compared with "full": names of study/arms.py ("all": each of them), or single settings as KEY=VALUE. A demo
    # leaves out the arms that train SFT anew
    arms: tuple[str, ...] = ("no-sft", "no-rl", "reinforce++", "grpo")
    seeds: tuple[int, ...] = (0,)  # ours: a demo; a claim takes three or more
    steps: int = 2  # ours: of RL, for every arm (of SFT: sft.steps); a demo, too few to rank the arms
    prompts_per_step: int = 2  # ours: a demo, as above
    dev_users: int = 12  # ours: a demo


@dataclass(frozen=True)
class EndpointSettings:
    """Requests to endpoints (base model and teacher), and what a run may spend on them (0: no limit). All ours."""

    concurrency: int = 8  # requests at once
    timeout: float = 120.0  # seconds per request
    tries: int = 6  # per request, if trying again can help
    backoff: float = 0.5  # seconds before the second try; doubles, with jitter; Retry-After takes precedence
    tolerate: float = 0.02  # share of answers that may be missing without stopping the stage
    send_temperature: bool = True  # false for models that reject it; their answers are sampled, but cached like others
    thinking_tokens: int = 0  # extra tokens per answer for models that reason first
    cache: bool = True  # keep answers in answers.sqlite beside the runs
    max_requests: int = 0  # of the whole run, all stages and calls together
    max_tokens: int = 0  # likewise, prompts and answers
    max_cost: float = 0.0  # in the currency of the prices
    prices: tuple[str, ...] = ()  # "openai:gpt-4o-mini 0.15 0.60": price per million prompt tokens, and new tokens


@dataclass(frozen=True)
class Preset:
    name: str
    about: str
    data: DataSettings = field(default_factory=DataSettings)
    base: str = "local:smollm2"  # the black box: never trained, never sees the profile
    base_max_new_tokens: int = 32  # ours: a tweet or title; labels and ratings take fewer
    reflection: ModelSettings = field(default_factory=ModelSettings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    sft: SFTSettings = field(default_factory=SFTSettings)
    rl: RLSettings = field(default_factory=RLSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    components: ComponentsSettings = field(default_factory=ComponentsSettings)
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)


_ALL_SYSTEMS = (  # LaMP and its followers report context injection at k = 1, 2, 4 and PAG at 0 and 1
    *("base", *TRIVIAL, "context-1", "context-2", "context-4", "context", "pag-0", "pag-1"),
    *("untrained", "sft", "rl"),
)

_GPU_24GB = Preset(
    name="gpu-24gb",
    about="one 24 GB GPU, bf16, 4-bit",
    data=DataSettings(train_users=2000, dev_users=500),
    base="local:unsloth/Qwen2.5-7B-Instruct",
    reflection=ModelSettings("unsloth/Qwen2.5-7B-Instruct", load_in_4bit=True, max_seq_length=4096),
    # Batch sizes: measured on an H100 within 24 GB (docs/benchmarks.md). By memory.py for the longest prompts, GB:
    # prepare 14.2, sft 9.4, rl 15.9, evaluate 14.2; the weights alone are 5.5 (4-bit; embedding and head 16-bit).
    sft=SFTSettings(steps=300, batch_size=2, accumulate=8, learning_rate=2e-4),
    rl=RLSettings(
        steps=200,
        prompts_per_step=8,
        micro_batch_tokens=6144,
        gradient_checkpointing=True,
        learning_rate=5e-6,
        max_new_tokens=256,
        save_every=20,
    ),
    evaluation=EvaluationSettings(max_new_tokens=256, batch_size=8, systems=_ALL_SYSTEMS),
    sweep=SweepSettings(steps=100, prompts_per_step=8, seeds=(0, 1, 2), eval_shots=(2, 4, 6), dev_users=500),
    components=ComponentsSettings(("all",), (0, 1, 2), steps=100, prompts_per_step=8, dev_users=500),
)

RETIRED = {  # settings that run.json files of earlier versions hold
    "rl.micro_batch": "micro-batches hold whole groups, up to rl.micro_batch_tokens tokens",
}

PRESETS: dict[str, Preset] = {
    "cpu": Preset(
        name="cpu",
        about="2 cores, 8 GB of memory, no GPU, no network, no key: small, but runs the whole method",
        rl=RLSettings(warmup=0.25),
    ),
    "short": Preset(
        name="short",
        about="the same machine, half the time: SFT shows, what RL and the arms add does not",
        data=DataSettings(train_users=160, dev_users=40),
        sft=SFTSettings(steps=40),  # measured: with 24 the module scores less than the query unchanged
        rl=RLSettings(steps=2, prompts_per_step=4),
        evaluation=EvaluationSettings(systems=("base", *TRIVIAL, "sft", "rl")),
        sweep=SweepSettings(arms=("fixed-2", "progressive")),
        components=ComponentsSettings(("no-rl",)),
    ),
    "cpu-long": Preset(
        name="cpu-long",
        about="the same machine, one to two hours without the sweep: users and RL steps as in the stored runs",
        data=DataSettings(train_users=1200, dev_users=300),
        sft=SFTSettings(steps=110),  # measured on LaMP-1; LaMP-3 wants 360
        # measured on LaMP-1; LaMP-3 wants 6e-5, LaMP-7 2e-4 and 24 steps
        rl=RLSettings(steps=16, prompts_per_step=16, learning_rate=3e-5, save_every=4),
        sweep=SweepSettings(steps=8, prompts_per_step=16, seeds=(0, 1), dev_users=60),
        components=ComponentsSettings(("all",), (0, 1), steps=8, prompts_per_step=16, dev_users=300),
    ),
    "tiny": Preset(
        name="tiny",
        about="the same path in a few minutes, for tests and a first look; says nothing about quality",
        data=DataSettings(train_users=12, dev_users=6, items_per_user=7),
        synthesis=SynthesisSettings(per_query=1),
        sft=SFTSettings(steps=3, batch_size=2, accumulate=1, save_every=1),
        rl=RLSettings(steps=2, prompts_per_step=1, group_size=2, max_new_tokens=24, save_every=1),
        evaluation=EvaluationSettings(max_new_tokens=24, bootstrap=200),
        sweep=SweepSettings(arms=("fixed-2", "progressive"), steps=1, prompts_per_step=1, eval_shots=(2,), dev_users=4),
        components=ComponentsSettings(("no-sft", "no-rl", "no-plan"), steps=1, prompts_per_step=1, dev_users=4),
    ),
    "colab-t4": Preset(
        name="colab-t4",
        about="a Colab T4 (15 GB), fp16, 4-bit",
        data=DataSettings(train_users=1000, dev_users=300),
        base="local:unsloth/Qwen2.5-1.5B-Instruct",
        reflection=ModelSettings("unsloth/Qwen2.5-1.5B-Instruct", load_in_4bit=True, max_seq_length=2048),
        # Batch sizes: measured on an H100 within 15 GB, not on a T4. As for gpu-24gb, GB: prepare 5.0, sft 2.7, rl 6.9,
        # evaluate 11.4; the weights alone are 1.1. RL on the longest prompts without checkpointing would take 31.
        sft=SFTSettings(steps=200, batch_size=4, accumulate=2, learning_rate=2e-4),
        rl=RLSettings(
            steps=100,
            prompts_per_step=8,
            micro_batch_tokens=8192,
            gradient_checkpointing=True,
            learning_rate=1e-5,
            max_new_tokens=192,
            save_every=10,
        ),
        evaluation=EvaluationSettings(max_new_tokens=192, batch_size=32, systems=_ALL_SYSTEMS),
        sweep=SweepSettings(steps=50, prompts_per_step=8, eval_shots=(2, 4, 6), dev_users=300),
        components=ComponentsSettings(("all",), steps=50, prompts_per_step=8, dev_users=300),
    ),
    "gpu-24gb": _GPU_24GB,
    "paper": dataclasses.replace(
        _GPU_24GB,
        name="paper",
        about="as gpu-24gb, full LaMP files, three seeds, an OpenAI-compatible teacher",
        data=DataSettings(source="official", train_users=ALL_USERS, dev_users=ALL_USERS),
        synthesis=SynthesisSettings(teacher="openai:gpt-4o-mini", shots=(1,)),
    ),
}


def get_preset(name: str, overrides: Mapping[str, Any] | None = None) -> Preset:
    """The named preset with dotted overrides such as `{"rl.steps": 3}`; strings are converted to the field's type.

    Raises:
        KitError: unknown preset or setting, wrong type, or an invalid combination.
    """
    if name not in PRESETS:
        raise KitError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return override(PRESETS[name], overrides or {})


def teacher_of(preset: Preset) -> str:
    """What `synthesis.teacher` names: `rules` are `persona` on the embedded benchmark, `hindsight` on other data."""
    named = preset.synthesis.teacher
    if named != "rules":
        return named
    return "persona" if preset.data.source == "personas" else "hindsight"


def override(preset: Preset, overrides: Mapping[str, Any]) -> Preset:
    """The settings with these changes. Raises KitError for unknown or invalid ones."""
    for key, value in overrides.items():
        if key in RETIRED:
            raise KitError(f"There is no setting {key!r} any more: {RETIRED[key]}.")
        preset = replaced(preset, key, value)
    for spec in (preset.base, preset.synthesis.teacher):
        refuse_secrets(spec)
    check(flat(preset))
    return preset


def as_dict(preset: Preset) -> dict[str, Any]:
    """The preset as plain JSON values (tuples become lists)."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(preset))))


def flat(preset: Preset) -> dict[str, Any]:
    """All settings by their dotted keys, as plain JSON values: {"base": "local:smollm2", "rl.steps": 13, …}."""
    return flattened(as_dict(preset))


def changed(preset: Preset) -> dict[str, Any]:
    """The settings in which it differs from the preset of its name, by their dotted keys."""
    usual = flat(PRESETS[preset.name])
    return {key: value for key, value in flat(preset).items() if value != usual[key]}


def flattened(plain: Mapping[str, Any]) -> dict[str, Any]:
    """`flat` of a preset as plain JSON values, such as a stored one, which may lack settings of later versions."""
    settings: dict[str, Any] = {}
    for name, value in plain.items():
        settings |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return {key: value for key, value in settings.items() if key not in ("name", "about")}
