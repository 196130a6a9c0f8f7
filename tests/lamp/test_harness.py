"""Another harness asks what the kit asks and scores as `score` does, with the same predictions."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpo_kit.errors import KitError
from rpo_kit.lamp import harness, personas
from rpo_kit.lamp.context import lamp_prompt
from rpo_kit.lamp.files import PREDICTIONS, read_outputs
from rpo_kit.lamp.harness.questions import METRICS, answered, corpus_metric, example_score, questions
from rpo_kit.lamp.metrics import example_scores, metrics_of_files, scorable, write_predictions
from rpo_kit.lamp.reading import read
from rpo_kit.lamp.retrieval import rank
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, Task
from rpo_kit.study.score_report import report_of_files

ROOT = Path(__file__).parents[2]
HARNESS = Path(harness.__file__).parent
YAMLS = HARNESS / "lm_eval_tasks"
EVERY = TASKS | MORE_TASKS
NAMES = {name: name.lower().replace("-", "_").replace("_", "", 1) for name in EVERY}  # LaMP-2-news: lamp2_news
OFFICIAL = 6  # examples in the folder with LaMP's files


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each task a folder as LaMP distributes them: no user_id, the golds in a file of their own; two users share
    a history, as in LaMP-2 and LaMP-4.
    """
    return {name: write_official(tmp_path_factory.mktemp(name), task) for name, task in EVERY.items()}


def write_official(folder: Path, task: Task) -> Path:
    rows, golds = [], []
    for n in range(OFFICIAL):
        words = ("a quiet lamp", "rain on the roof", "the seventh train", "two red boats", "old maps", "salt and light")
        parts = {name: f"{words[n]} {name} {n}" for name in task.parts}
        user = max(n, 1)  # the first two queries are of one user
        items = [{"id": f"{n}{m}", **{f: f"{words[m]} {f} {user}" for f in task.fields}} for m in range(3)]
        for item in items:
            if task.items_have_labels:
                item[task.gold_field] = task.labels[int(item["id"]) % len(task.labels)]
        rows.append({"id": f"9{n}", "input": task.make_input(**parts), "profile": items})
        gold = task.labels[n % 4 % len(task.labels)] if task.labels else f"{words[n]}, as seen by {n} people"
        golds.append({"id": f"9{n}", "output": gold})
    (folder / "dev_questions.json").write_text(json.dumps(rows))
    (folder / "dev_outputs.json").write_text(json.dumps({"task": task.official_name, "golds": golds}))
    return folder


def replies(task: Task, rows: list[Any]) -> dict[str, str]:
    """{prompt: what a model replies}: right and wrong answers, chatter, refusals, junk, nothing."""
    golds = [row["gold"] for row in rows]
    made = {}
    for n, row in enumerate(rows):
        other = golds[(n + 1) % len(golds)]
        kinds = (
            row["gold"],
            other,
            f"Sure! Here is my answer:\n\n**{other}**",
            "",
            f"<think>It could be {other}.</think> {row['gold']}",
            "I cannot answer this.",
            "nan",
            " \n",
            f"Answer: {row['gold']}",
            "4.5" if task.kind == "regression" else f'"{other}"',
            "8/10",
        )
        made[row["prompt"]] = kinds[n % len(kinds)]
    assert len(made) == len(rows), "each prompt is another one"
    return made


# ---- what both share ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_with_k_0_a_model_is_asked_lamps_input_and_with_k_items_lamps_prompt(name):
    task, rows = TASKS[name], list(personas.build(name, "dev", 3))
    asked = questions(name, users=3)
    assert [(q["prompt"], q["gold"], q["id"], q["user_id"]) for q in asked] == [
        (row["input"], row["output"], row["id"], row["user_id"]) for row in rows
    ]
    ranking = rank(task, rows, "recency")
    expected = [
        lamp_prompt(task, row["input"], [row["profile"][i] for i in order[:2]])
        for row, order in zip(rows, ranking, strict=True)
    ]
    assert [q["prompt"] for q in questions(name, k=2, retriever="recency", users=3)] == expected
    assert expected[0] != rows[0]["input"]


def test_questions_carry_no_profile_unless_asked_to():
    assert questions("LaMP-3", users=1)[0]["profile"] == []
    assert len(questions("LaMP-3", users=1, profile=True)[0]["profile"]) == 12


def test_a_folder_is_read_whole_personas_as_many_as_in_a_run(official):
    assert len(questions("LaMP-6", str(official["LaMP-6"]))) == OFFICIAL
    assert len(questions("LaMP-6", str(official["LaMP-6"]), users=1)) == 2, "the first two share a history"
    assert len(questions("LaMP-3")) == 100


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"lamp": "LaMP-6"}, "There are no personas for LaMP-6: give data as a folder"),
        ({"split": "test"}, "There is no split 'test' with golds"),
        ({"k": -1}, "k is -1: give a whole number, 0 or more"),
        ({"k": True}, "k is True"),
        ({"k": None}, "k is None"),
        ({"users": 0}, "users is 0: give a whole number, 1 or more"),
        ({"retriever": "bm52"}, "There is no retriever 'bm52'"),
        ({"data": "nowhere"}, "'nowhere' is not an existing folder"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_sentence(given, why):
    with pytest.raises(KitError, match=why):
        questions(**({"lamp": "LaMP-3"} | given))


def test_a_split_that_a_folder_lacks_is_refused(official):
    with pytest.raises(KitError, match="no examples in the split train"):
        questions("LaMP-3", str(official["LaMP-3"]), split="train")


def test_an_answer_is_read_like_the_base_models_and_a_rating_that_lamp_rejects_is_none():
    assert answered("LaMP-3", "2", "I would give it a 4.")["prediction"] == "4"
    assert answered("LaMP-3", "2", "nan")["prediction"] == ""
    assert answered("LaMP-4", "nan", "nan")["prediction"] == "nan", "a headline may be"
    assert example_score(answered("LaMP-3", "2", "nan")) == 0.25, "the worst end of the scale, 5"


def test_corpus_metrics_by_hand():
    rows = [answered("LaMP-3", gold, reply) for gold, reply in (("1", "3"), ("5", "no idea"), ("2", "2"))]
    assert corpus_metric("MAE", rows) == pytest.approx((2 + 4 + 0) / 3)
    assert corpus_metric("unreadable", rows) == pytest.approx(1 / 3)
    assert corpus_metric("MAE", []) != corpus_metric("MAE", []), "nan"


def test_the_metrics_are_those_of_the_tasks():
    assert set(METRICS) == {name for task in EVERY.values() for name in task.metrics}


# ---- what the harnesses find --------------------------------------------------------------------------------------


def test_inspect_finds_the_tasks_by_an_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module = project["entry-points"]["inspect_ai"]["rpo_kit"]
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
    calls = [node.value for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    named = {
        call.args[0].value: call.args[1].value
        for call in calls
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "_lamp_task"
    }
    assert named == NAMES


def test_the_folder_for_lm_eval_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "rpo_kit.lamp.harness"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert Path(done.stdout.strip()) == YAMLS


def load_config(path: Path) -> dict[str, Any]:
    """A YAML file with what it includes; a function is its name."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    content = yaml.load(path.read_text(), Loader)
    return (load_config(path.parent / content["include"]) if "include" in content else {}) | content


def test_lm_eval_finds_a_file_per_task_with_the_tasks_metrics():
    source = ast.parse((YAMLS / "lamp_functions.py").read_text())
    functions = {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
    for name, short in NAMES.items():
        config = load_config(YAMLS / f"{short}.yaml")
        assert (config["task"], config["metadata"]["lamp"]) == (f"rpo_{short}", name)
        assert (config.get("tag") == "rpo_lamp") == (name in TASKS), "the tag takes the tasks that have personas"
        assert [m["metric"] for m in config["metric_list"]] == ["score", *EVERY[name].metrics, "unreadable"]
        higher = [m["higher_is_better"] for m in config["metric_list"]]
        assert higher == [True, *[EVERY[name].kind != "regression"] * 2, False]
        given = {str(m["aggregation"]) for m in config["metric_list"]} - {"mean"}
        assert {given_name.removeprefix("lamp_functions.") for given_name in given} <= functions


def test_the_yaml_files_are_in_the_package():
    assert "*.yaml" in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert (YAMLS / "__init__.py").is_file(), "without it setuptools leaves the folder out"


# ---- predictions replayed through both ------------------------------------------------------------------------------


@pytest.fixture
def inspect_ai() -> Any:
    return pytest.importorskip("inspect_ai")


@pytest.fixture
def lm_eval() -> Any:
    return pytest.importorskip("lm_eval")


SOURCES = [*((name, "personas") for name in TASKS), *((name, "official") for name in EVERY)]


def scored(task: Task, rows: list[Any], told: dict[str, str], folder: Path) -> dict[str, float]:
    """What `score` prints, unrounded, for the same replies in LaMP's format, read by the kit's rules."""
    golds, predictions = folder / "golds.json", folder / "predictions.json"
    write_predictions(golds, task, [row["id"] for row in rows], [row["gold"] for row in rows])
    texts = [scorable(task, read(task, told[row["prompt"]]).text) for row in rows]
    write_predictions(predictions, task, [row["id"] for row in rows], texts)
    metrics = metrics_of_files(golds, predictions)
    report = report_of_files(golds, predictions)
    assert all(f"{name:10} {value:.6f}" in report for name, value in metrics.items())
    assert len({round(value, 6) for value in metrics.values()} & {0.0, 1.0}) == 0, "a test that all would pass"
    return metrics


@pytest.fixture(params=SOURCES, ids=lambda source: "-".join(source))
def replayed(request, official, tmp_path) -> tuple[str, str, dict[str, str], dict[str, float], float]:
    """A task, its data, the replies by prompt, and the metrics and mean score that a harness should report."""
    name, source = request.param
    task, data = EVERY[name], "personas" if source == "personas" else str(official[name])
    rows = questions(name, data, k=1, users=12)
    told = replies(task, rows)
    expected = scored(task, rows, told, tmp_path)
    texts = list(read_outputs(tmp_path / "predictions.json", PREDICTIONS)[1].values())
    return name, data, told, expected, float(example_scores(task, [row["gold"] for row in rows], texts).mean())


@pytest.mark.interop
def test_inspect_scores_as_score_does(inspect_ai, replayed, tmp_path):
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from rpo_kit.lamp.harness import inspect_tasks

    name, data, told, expected, mean_score = replayed

    def reply(messages, *_: Any) -> ModelOutput:
        (message,) = messages
        output = ModelOutput.from_content("replayed", told[message.text])
        output.usage = ModelUsage()  # else mockllm counts tokens with a file that it downloads
        return output

    build = getattr(inspect_tasks, NAMES[name])
    (log,) = inspect_ai.eval(
        build(data=data, k=1, users=12),
        model=get_model("mockllm/model", custom_outputs=reply, memoize=False),
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success"
    metrics = {key: metric.value for score in log.results.scores for key, metric in score.metrics.items()}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert metrics["mean"] == pytest.approx(mean_score, abs=1e-9)
    assert metrics["unreadable"] == pytest.approx(
        sum(s.scores["lamp_answer"].reason == "invalid_response_format" for s in log.samples) / len(log.samples)
    )
    assert 0 < metrics["unreadable"] < 1
    assert {(s.id, s.target) for s in log.samples} == {(q["id"], q["gold"]) for q in questions(name, data, users=12)}


@pytest.mark.interop
def test_lm_eval_scores_as_score_does(lm_eval, replayed):
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    name, data, told, expected, mean_score = replayed

    class Replay(LM):
        def generate_until(self, requests, disable_tqdm=False):
            return [told[request.args[0]] for request in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    metadata = {"data": data, "k": 1, "users": 12, "pretrained": "an argument of a model, which the task ignores"}
    manager = TaskManager(include_path=str(YAMLS), include_defaults=False, metadata=metadata)
    task = f"rpo_{NAMES[name]}"
    report = lm_eval.simple_evaluate(model=Replay(), tasks=[task], task_manager=manager, bootstrap_iters=0)
    results = report["results"][task]
    metrics = {key.removesuffix(",none"): value for key, value in results.items() if str(key).endswith(",none")}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert metrics["score"] == pytest.approx(mean_score, abs=1e-9)
    assert 0 < metrics["unreadable"] < 1


@pytest.mark.interop
def test_with_several_epochs_inspect_counts_every_answer(inspect_ai, tmp_path):
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from rpo_kit.lamp.harness.inspect_tasks import lamp3

    (question,) = questions("LaMP-3", users=1)
    far = "1" if int(question["gold"]) > 2 else "5"
    outputs = [ModelOutput.from_content("m", text) for text in (question["gold"], far)]
    for output in outputs:
        output.usage = ModelUsage()
    model = get_model("mockllm/model", custom_outputs=outputs, memoize=False)
    (log,) = inspect_ai.eval(
        lamp3(users=1), model=model, epochs=2, log_dir=str(tmp_path), display="none", max_connections=1
    )
    metrics = {key: metric.value for score in log.results.scores for key, metric in score.metrics.items()}
    assert metrics["MAE"] == abs(int(question["gold"]) - int(far)) / 2


@pytest.mark.interop
def test_the_profile_goes_to_the_served_module_in_the_request(inspect_ai, endpoint, tmp_path, monkeypatch):
    from rpo_kit.lamp.harness.inspect_tasks import lamp7

    monkeypatch.setenv("RPO_BASE_URL", endpoint.url)
    monkeypatch.setenv("RPO_API_KEY", "none")
    (log,) = inspect_ai.eval(
        lamp7(users=1, profile=True), model="openai-api/rpo/rpo", log_dir=str(tmp_path), display="none"
    )
    assert log.status == "success"
    (question,) = questions("LaMP-7", users=1, profile=True)
    (request,) = endpoint.requests
    assert request["profile"] == question["profile"]
    assert request["messages"] == [{"role": "user", "content": question["prompt"]}]
