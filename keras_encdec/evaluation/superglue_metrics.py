"""SuperGLUE's official metrics, weighted, so that resampling a development set is a weight.

Knows what each metric is. NumPy only.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_encdec import check
from keras_encdec.evaluation.superglue_data import Split, Task

SCORE = "score"  # the mean of a task's official metrics, as SuperGLUE's table has it
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]


def accuracy(
    labels: np.ndarray, predicted: np.ndarray, questions: np.ndarray, weights: np.ndarray
) -> float:
    """The share that is right.

    Args:
        labels: (n,) numbers of classes.
        predicted: (n,) likewise.
        questions: (n,) the question that each is of.
        weights: (n,) what each counts, alike in a question.
    """
    return float(np.average(labels == predicted, weights=weights))


def macro_f1(
    labels: np.ndarray, predicted: np.ndarray, questions: np.ndarray, weights: np.ndarray
) -> float:
    """The mean F1 of the classes that are there or predicted; arguments as of `accuracy`."""
    count = int(max(labels.max(), predicted.max())) + 1
    there, said, right = (
        np.bincount(numbers, weights=some, minlength=count)
        for numbers, some in (
            (labels, weights),
            (predicted, weights),
            (labels, weights * (labels == predicted)),
        )
    )
    known = there + said > 0
    return float(np.mean(2 * right[known] / (there + said)[known]))


def f1_of_answers(
    labels: np.ndarray, predicted: np.ndarray, questions: np.ndarray, weights: np.ndarray
) -> float:
    """F1 of the answers that are right, over all questions; 0 where there are none."""
    both = np.sum(weights * labels * predicted)
    total = np.sum(weights * (labels + predicted))
    return float(2 * both / total) if total else 0.0


def exact_match(
    labels: np.ndarray, predicted: np.ndarray, questions: np.ndarray, weights: np.ndarray
) -> float:
    """The share of questions whose answers are all judged right."""
    _, first, inverse = np.unique(questions, return_index=True, return_inverse=True)
    wrong = np.bincount(inverse, weights=labels != predicted)
    return float(np.average(wrong == 0, weights=weights[first]))


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": macro_f1,
    "f1a": f1_of_answers,
    "em": exact_match,
}


def check_metric(metric: str, tasks: Sequence[Task]) -> None:
    """Refuses a metric that a task does not have: accuracy and score are every task's.

    Raises:
        ValueError: naming the task and what it has.
    """
    check.one_of("metric", metric, (SCORE, *METRICS))
    for task in tasks:
        if metric not in (SCORE, "accuracy", *task.metrics):
            known = ", ".join(dict.fromkeys((SCORE, "accuracy", *task.metrics)))
            raise ValueError(
                f"Expected a metric that every task has. Received: {metric!r}, and {task.name}, "
                f"which has {known}."
            )


def measure(
    metric: str, task: Task, split: Split, predicted: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """One metric of what was predicted.

    Args:
        metric: `"score"`, or a key of `METRICS`.
        task: whose official metrics the score is the mean of.
        split: with labels.
        predicted: (n,) numbers of classes.
        weights: (n,) what each counts, alike in a question; None for 1.
    """
    weights = np.ones(len(split)) if weights is None else weights
    names = task.metrics if metric == SCORE else (metric,)
    given = split.labels, np.asarray(predicted), split.questions, weights
    return float(np.mean([METRICS[name](*given) for name in names]))


def all_metrics(task: Task, split: Split, predicted: np.ndarray) -> dict[str, float]:
    """Score, accuracy and the other official metrics, by name."""
    names = dict.fromkeys((SCORE, "accuracy", *task.metrics))
    return {name: measure(name, task, split, predicted) for name in names}
