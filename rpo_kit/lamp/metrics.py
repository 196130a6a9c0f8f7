"""LaMP's metrics, exactly as its evaluation script computes them, re-implemented in numpy and `rouge_score`.

The last step of Figure 1: a prediction is compared with the gold. One deliberate difference: LaMP's ROUGE (Lin, 2004)
is the median of 1,000 unseeded bootstrap means and differs from run to run in the fourth digit; here it is the plain
mean over examples, which that median estimates (within about 0.001 for 1,000 examples or more, as a test checks).
Confidence intervals are in `study`.

>>> from rpo_kit.lamp.tasks import get_task
>>> lamp_metrics(get_task("LaMP-3"), golds=["5", "1"], preds=["4", "no idea"])   # not a number: the worst end, 5
{'MAE': 2.5, 'RMSE': 2.9154759474226504}
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rouge_score.tokenize import tokenize

from rpo_kit.errors import KitError
from rpo_kit.lamp.files import GOLDS, PREDICTIONS, Role, read_outputs, write_outputs
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, Task, get_task


def example_score(task: Task, gold: str, pred: str) -> float:
    """`example_scores` of one example."""
    return float(example_scores(task, [gold], [pred])[0])


def lamp_metrics(task: Task, golds: Sequence[str], preds: Sequence[str]) -> dict[str, float]:
    """LaMP's metrics over all examples, ROUGE on the scale 0..1.

    Raises: KitError for a rating "nan" or "inf", which LaMP's evaluator rejects as well.
    """
    _check_pairs(golds, preds)
    if task.kind == "classification":
        return _classification_scores(task, golds, preds)
    if task.kind == "regression":
        _check_predicted_ratings(preds, range(len(preds)))
        errors = _rating_errors(golds, preds)
        return {"MAE": float(np.mean(np.abs(errors))), "RMSE": float(np.sqrt(np.mean(errors**2)))}
    rouge = _rouge(golds, preds)
    return dict(zip(task.metrics, rouge.mean(axis=0).tolist(), strict=True))


def example_scores(task: Task, golds: Sequence[str], preds: Sequence[str]) -> np.ndarray:
    """Score of each example in 0..1, higher is better; shape (n,).

    Classification: right or wrong. Regression: 1 - |error| / 4, not below 0; what is not a number ("nan" included)
    counts as the worst end of the scale, which for a gold of 3 still scores 1/2. Generation: mean of ROUGE-1 and
    ROUGE-L.
    """
    _check_pairs(golds, preds)
    scores: np.ndarray
    if task.kind == "classification":
        scores = (_label_indices(task, golds) == _label_indices(task, preds)).astype(float)
    elif task.kind == "regression":
        scores = np.clip(1.0 - np.abs(_rating_errors(golds, preds)) / 4.0, 0.0, 1.0)
    else:
        scores = _rouge(golds, preds).mean(axis=1)
    return scores


def is_parseable(task: Task, pred: str) -> bool:
    """Whether LaMP's evaluator can read the prediction: a label, a finite number, or a text that is not empty."""
    if task.kind == "classification":
        return str(pred).strip() in task.labels
    if task.kind == "regression":
        return bool(np.isfinite(_numbers([pred]))[0])
    return bool(str(pred).strip())


def scorable(task: Task, prediction: str) -> str:
    """The prediction, but "" instead of a rating such as "nan", which LaMP's evaluator rejects.

    The empty text counts as the worst end of the scale.
    """
    return prediction if is_parseable(task, prediction) or task.kind != "regression" else ""


def _check_pairs(golds: Sequence[str], preds: Sequence[str]) -> None:
    if len(golds) != len(preds):
        raise KitError(
            f"{len(golds)} golds and {len(preds)} predictions cannot be paired: give one prediction per gold."
        )
    if not golds:
        raise KitError("There is nothing to score: golds and predictions are empty. Check the split and its filters.")


# --- classification ---


def _label_indices(task: Task, texts: Sequence[str]) -> np.ndarray:
    """Index of each label, -1 for anything else: exact and case-sensitive except for outer whitespace."""
    index_of = {label: index for index, label in enumerate(task.labels)}
    return np.array([index_of.get(str(text).strip(), -1) for text in texts])


def _classification_scores(task: Task, golds: Sequence[str], preds: Sequence[str]) -> dict[str, float]:
    gold, pred = _label_indices(task, golds), _label_indices(task, preds)
    f1 = []
    for label in range(len(task.labels)):
        hits = np.sum((gold == label) & (pred == label))
        named = np.sum(gold == label) + np.sum(pred == label)
        f1.append(2 * hits / named if named else 0.0)  # as in LaMP, an unused label counts as 0 in the average
    # LaMP: a gold and a prediction that are both not labels are both -1, hence equal, hence "correct".
    return {"accuracy": float(np.mean(gold == pred)), "f1": float(np.mean(f1))}


# --- regression ---


def _number(text: str) -> float | None:
    try:
        return float(str(text).strip())
    except ValueError:
        return None


def _numbers(texts: Sequence[str]) -> np.ndarray:
    """The texts as float32, as LaMP's library stores them ("4.2" is 4.19999981); nan for what is not a number."""
    numbers = [math.nan if (number := _number(text)) is None else number for text in texts]
    with np.errstate(over="ignore"):  # "1e99" becomes inf
        return np.array(numbers, np.float64).astype(np.float32).astype(np.float64)


def _check_gold_ratings(golds: Sequence[str], ids: Sequence[object]) -> None:
    for n in np.flatnonzero(~np.isfinite(_numbers(golds))).tolist():
        raise KitError(
            f"The gold of example {ids[n]} is {str(golds[n])[:40]!r}, which is not a rating: correct the gold file."
        )


def _check_predicted_ratings(preds: Sequence[str], ids: Sequence[object]) -> None:
    """Reject with a message that names the example what stops LaMP's evaluator with a traceback.

    "nan", "inf" and "1e99" parse and cannot be scored; what does not parse counts as the worst end of the scale.
    """
    for n in np.flatnonzero(~np.isfinite(_numbers(preds))).tolist():
        if _number(preds[n]) is not None:
            raise KitError(
                f"The prediction for example {ids[n]} is {str(preds[n])[:40]!r}, which LaMP's evaluator rejects: "
                "predict a finite number, or an empty text, which counts as the worst end of the scale."
            )


def _rating_errors(golds: Sequence[str], preds: Sequence[str]) -> np.ndarray:
    """Prediction minus gold, shape (n,). What is not a number becomes 1 or 5, whichever is further (5 for gold 3)."""
    _check_gold_ratings(golds, range(len(golds)))
    gold, pred = _numbers(golds), _numbers(preds)
    worst = np.where(np.abs(1.0 - gold) > np.abs(5.0 - gold), 1.0, 5.0)
    errors: np.ndarray = np.where(np.isfinite(pred), pred, worst) - gold
    return errors


# --- generation ---


def _rouge(golds: Sequence[str], preds: Sequence[str]) -> np.ndarray:
    """ROUGE-1 and ROUGE-L F-measure of each example, shape (n, 2). Words are runs of ASCII letters and digits.

    `rouge_score` splits the words. The results equal its own to the last bit, without its tables in plain Python.
    """
    rows = []
    for gold, pred in zip(golds, preds, strict=True):
        gold_words, pred_words = (tokenize(str(text).strip(), None) for text in (gold, pred))
        unigrams = (Counter(gold_words) & Counter(pred_words)).total()
        common = (unigrams, _common_subsequence(gold_words, pred_words))
        rows.append([_f_measure(n, len(gold_words), len(pred_words)) for n in common])
    return np.array(rows, dtype=float)


def has_words(text: str) -> bool:
    """Whether ROUGE reads anything in the text: an ASCII letter or digit."""
    return bool(tokenize(text, None))


def _f_measure(common: int, gold: int, pred: int) -> float:
    """2 P R / (P + R) with P = common / pred and R = common / gold, all numbers of words."""
    if not common:
        return 0.0
    precision, recall = common / pred, common / gold
    return 2 * precision * recall / (precision + recall)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyro, 2004).

    One bit per word of `first`, one addition per word of `second`.
    """
    positions: dict[str, int] = {}
    for n, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << n
    all_bits = (1 << len(first)) - 1
    open_bits = all_bits  # a zero marks a word that the subsequence takes
    for word in second:
        hit = open_bits & positions.get(word, 0)
        open_bits = ((open_bits + hit) | (open_bits - hit)) & all_bits
    return len(first) - open_bits.bit_count()


# --- files ---


def metrics_of_files(golds: Path, preds: Path) -> dict[str, float]:
    """LaMP's metrics for a gold file and a prediction file, which must name one task and have the same ids."""
    return metrics_of_outputs(*read_pair(golds, preds))


def metrics_of_outputs(task: Task, golds: Mapping[str, str], preds: Mapping[str, str]) -> dict[str, float]:
    """LaMP's metrics for {id: gold} and {id: prediction} with the same ids."""
    ids = list(golds)
    gold_texts, pred_texts = list(golds.values()), [preds[key] for key in ids]
    if task.kind == "regression":
        # lamp_metrics checks as well, but knows indices only, not ids.
        _check_gold_ratings(gold_texts, ids)
        _check_predicted_ratings(pred_texts, ids)
    return lamp_metrics(task, gold_texts, pred_texts)


def read_pair(golds: Path, preds: Path) -> tuple[Task, dict[str, str], dict[str, str]]:
    """The task of two files, {id: gold} and {id: prediction}. Raises KitError if they do not belong together."""
    gold_task, gold_of = read_outputs(golds, GOLDS)
    pred_task, pred_of = read_outputs(preds, PREDICTIONS)
    if _official_name(gold_task, GOLDS, golds) != _official_name(pred_task, PREDICTIONS, preds):
        raise KitError(
            f"The gold file {golds} is of {gold_task} and the prediction file {preds} of {pred_task}: give two files "
            "of one task."
        )
    missing, extra = gold_of.keys() - pred_of.keys(), pred_of.keys() - gold_of.keys()
    if missing or extra:
        raise KitError(
            f"The prediction file {preds} does not match the gold file {golds}: of {len(gold_of)} ids {len(missing)} "
            f"have no prediction{_such_as(missing)}, and {len(extra)} predictions have no gold{_such_as(extra)}. "
            "Predict each id of the split once."
        )
    return task_of_golds(gold_task, gold_of.values()), gold_of, pred_of


def task_of_golds(name: str, golds: Iterable[str]) -> Task:
    """The task of a gold file. "LaMP_2" means movies or news, which share no label: the golds decide."""
    task, texts = get_task(name), [gold.strip() for gold in golds]
    if not task.shares_official_name:
        return task
    namesakes = [other for other in (TASKS | MORE_TASKS).values() if other.official_name == task.official_name]
    return max(namesakes, key=lambda other: sum(text in other.labels for text in texts))  # in a tie the first


def _official_name(name: str, role: Role, path: Path) -> str:
    try:
        return get_task(name).official_name
    except KitError as error:
        raise KitError(f'The {role.name} {path} says "task": {name!r}. {error}') from None


def _such_as(ids: set[str]) -> str:
    return f" (such as {min(ids)!r})" if ids else ""


def write_predictions(path: Path, task: Task, ids: Sequence[str], preds: Sequence[str]) -> None:
    """Write predictions in LaMP's submission format, which `metrics_of_files` reads."""
    if len(ids) != len(preds) or len(set(ids)) != len(ids):
        raise KitError(
            f"{len(preds)} predictions for {len(ids)} ids ({len(set(ids))} different) cannot be written to {path}: "
            "give one prediction for each id."
        )
    write_outputs(path, task.official_name, dict(zip(ids, preds, strict=True)))
