"""What needs no model: the most frequent class, and words without their order.

Knows naive Bayes on counts of words. NumPy only.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from keras_encdec.data.labelled import Labelled
from keras_encdec.evaluation.superglue_data import Split

_WORD = re.compile(r"\w+")


def majority(train: Split, val: Split) -> np.ndarray:
    """(n,) the class that most of the training examples have; the first of several."""
    return np.full(len(val), np.bincount(train.labels).argmax())


class NaiveBayes:
    """Multinomial naive Bayes on words, each counted once more than it was seen.

    Args:
        texts: to learn from.
        labels: (n,) numbers of classes.
        count: of classes.
    """

    def __init__(self, texts: Sequence[str], labels: np.ndarray, count: int):
        bags = [_words(text) for text in texts]
        self._numbers = {word: i for i, word in enumerate(sorted(set().union(*bags)))}
        seen = np.ones((count, len(self._numbers)))
        for bag, label in zip(bags, labels, strict=True):
            numbers, counts = self._counts(bag)
            seen[label, numbers] += counts
        classes = np.bincount(labels, minlength=count) + 1.0
        self._prior = np.log(classes / classes.sum())
        self._words = np.log(seen / seen.sum(axis=1, keepdims=True))

    def log_odds(self, texts: Sequence[str]) -> np.ndarray:
        """(n, C) log p(class, words), but for what all classes have in common."""
        found = []
        for text in texts:
            numbers, counts = self._counts(_words(text))
            found.append(self._prior + self._words[:, numbers] @ counts)
        return np.array(found)

    def _counts(self, bag: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and counts of the words that are known."""
        known = [(self._numbers[word], n) for word, n in bag.items() if word in self._numbers]
        numbers, counts = zip(*known, strict=True) if known else ((), ())
        return np.array(numbers, int), np.array(counts, float)


def bag_of_words(train: Split, val: Split) -> np.ndarray:
    """(n,) what naive Bayes predicts of the words of all texts of an example.

    Of choices, each is judged right or wrong by its own words, and the likeliest is taken.
    """
    if train.data.choices is None:
        count = int(train.labels.max()) + 1
        model = NaiveBayes(_joined(train.data), train.labels, count)
        return model.log_odds(_joined(val.data)).argmax(axis=1)
    right = train.labels[:, None] == np.arange(train.data.num_choices)
    model = NaiveBayes(_choices(train.data), right.ravel().astype(int), 2)
    odds = model.log_odds(_choices(val.data))
    return (odds[:, 1] - odds[:, 0]).reshape(-1, val.data.num_choices).argmax(axis=1)


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.lower()))


def _joined(data: Labelled) -> list[str]:
    return ["\n".join(row) for row in data.rows]


def _choices(data: Labelled) -> list[str]:
    return [choice for row in data.choices or () for choice in row]
