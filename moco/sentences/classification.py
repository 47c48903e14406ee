"""Classifies sentences by l2 logistic regression, in nested cross-validation.

It also reads the labelled files. The protocol is Quick-Thought's for MR and CR. The features are frozen, and shuffled
once. For each outer fold an inner cross-validation on its training part chooses C from 2⁰ … 2⁸. The score is the mean
accuracy of the outer folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from moco import distributed
from moco.errors import InputError
from moco.randomness import Purpose, permutation, stream_key
from moco.sentences.corpus import Corpus, from_sentences
from moco.sentences.measures import encode
from moco.sentences.network import SentencePair
from moco.sentences.text import lines_of, read_text, text_files, words
from moco.sentences.vocabulary import Vocabulary

COSTS = [2.0**power for power in range(9)]
# With scikit-learn's default of 1e-4 the solver stops at once on features of unit length, because their gradients are
# small. Then C has no effect.
TOLERANCE = 1e-5


@dataclass
class LabelledSentences:
    """Holds tokenised sentences and their classes, int64 [n]."""

    name: str
    classes: list[str]
    sentences: list[list[str]]
    labels: np.ndarray

    @property
    def majority(self) -> float:
        """Returns the share of the most frequent class in percent."""
        return 100 * float(np.bincount(self.labels).max()) / len(self.labels)


def read_labelled(folder: str | Path, encoding: str = "auto", folds: int = 10) -> LabelledSentences:
    """Reads a folder of CLASS.txt files, one sentence a line.

    InputError for fewer than two files, or for a file with fewer than folds² sentences.
    """
    files = [path for path in text_files(Path(folder)) if path.parent == Path(folder)]
    if len(files) < 2:
        raise InputError(
            f"{folder} must hold a .txt file for each class, one sentence a line, such as pos.txt and neg.txt"
        )
    sentences = []
    labels = []
    for number, path in enumerate(files):
        lines = [line for line in lines_of(read_text(path, encoding)) if line.strip()]
        if len(lines) < folds**2:
            raise InputError(
                f"{path} has {len(lines)} sentences, too few for a nested {folds}-fold cross-validation; give at least"
                f" {folds**2} or lower --folds"
            )
        sentences += [words(line) for line in lines]
        labels += [number] * len(lines)
    name = Path(folder).resolve().name
    return LabelledSentences(name, [path.stem for path in files], sentences, np.array(labels, dtype=np.int64))


def sentence_features(
    pair: SentencePair, data: LabelledSentences, vocabulary: Vocabulary, longest: int, device: torch.device
) -> np.ndarray:
    """Returns the features [f; g] of each sentence.

    They are float32 [n, 2C]; each half has unit length.
    """
    corpus: Corpus = from_sentences(data.sentences, vocabulary, longest)
    return torch.cat(encode(pair, corpus, device), dim=1).float().cpu().numpy()


def bag_of_words(data: LabelledSentences) -> csr_matrix:
    """Counts every word of the data: sparse float64 [n, words].

    It is the baseline without encoder and pretraining.
    """
    columns: dict[str, int] = {}
    ids = [[columns.setdefault(word, len(columns)) for word in sentence] for sentence in data.sentences]
    rows = np.repeat(np.arange(len(ids)), [len(sentence) for sentence in ids])
    flat = np.array([word for sentence in ids for word in sentence], dtype=np.int64)
    return csr_matrix((np.ones(len(flat)), (rows, flat)), shape=(len(ids), len(columns)))


def _path(x: Any, y: np.ndarray, costs: Sequence[float], tolerance: float) -> list[Any]:
    """Fits a classifier for each C.

    Each fit starts from the weights of the one before.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(warm_start=True, max_iter=1000, tol=tolerance)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at C 256 the last digits of the weights do not matter
        for cost in costs:
            model.set_params(C=cost).fit(x, y)
            found.append((model.coef_.copy(), model.intercept_.copy(), model.classes_))
    return found


def _accuracy(classifier: Any, x: Any, y: np.ndarray) -> float:
    weight, bias, classes = classifier
    scores = x @ weight.T + bias
    predicted = classes[(scores[:, 0] > 0).astype(int)] if len(classes) == 2 else classes[scores.argmax(axis=1)]
    return 100 * float((predicted == y).mean())


def _folds(n: int, folds: int) -> list[np.ndarray]:
    return np.array_split(np.arange(n), folds)


def _without(n: int, fold: np.ndarray) -> np.ndarray:
    return np.setdiff1d(np.arange(n), fold, assume_unique=True)


def outer_fold(
    x: Any, y: np.ndarray, test: np.ndarray, folds: int, costs: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """Measures one outer fold.

    Returns (accuracy in percent on the rows `test`, C chosen without these rows).
    """
    train = _without(len(y), test)
    x_train = x[train]
    y_train = y[train]
    scores = np.zeros(len(costs))
    for held in _folds(len(train), folds):
        kept = _without(len(train), held)
        classifiers = _path(x_train[kept], y_train[kept], costs, tolerance)
        scores += [_accuracy(classifier, x_train[held], y_train[held]) for classifier in classifiers]
    # of equal scores the smallest C; rounded, so that last bits do not matter
    best = float(costs[int(scores.round(6).argmax())])
    return _accuracy(_path(x_train, y_train, [best], tolerance)[0], x[test], y[test]), best


def nested_cross_validation(
    x: Any,
    y: np.ndarray,
    folds: int = 10,
    seed: int = 0,
    costs: Sequence[float] = COSTS,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Measures the accuracy of l2 logistic regression by nested cross-validation.

    x: [n, C] features, dense or sparse. y: int64 [n]. The ranks share the outer folds, and all get the same result.
    Returns {"accuracy": mean of the outer folds in percent, "folds": accuracy of each, "costs": C of each}.
    """
    order = permutation(stream_key(seed, 0, Purpose.FOLD), len(y))
    x = x[order]
    y = y[order]
    own = _folds(len(y), folds)[distributed.rank() :: distributed.world_size()]
    mine = [outer_fold(x, y, test, folds, costs, tolerance) for test in own]
    of_ranks = distributed.gather_objects(mine)
    found = [of_ranks[i % len(of_ranks)][i // len(of_ranks)] for i in range(folds)]
    accuracies = [accuracy for accuracy, _ in found]
    return {"accuracy": sum(accuracies) / folds, "folds": accuracies, "costs": [cost for _, cost in found]}


def classify(
    pair: SentencePair,
    data: LabelledSentences,
    vocabulary: Vocabulary,
    longest: int,
    device: torch.device,
    folds: int,
    seed: int = 0,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Returns `nested_cross_validation` of the encoders' features."""
    say(f"{data.name}: {len(data.labels)} sentences, nested {folds}-fold cross-validation")
    return nested_cross_validation(sentence_features(pair, data, vocabulary, longest, device), data.labels, folds, seed)
