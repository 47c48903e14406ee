"""What frozen features are worth without training: logistic regression at its optimum, and nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco import metrics
from moco.data.subset import folds
from moco.probe.logistic import logistic_regression, standardise

PENALTIES = (1000.0, 100.0, 10.0, 1.0, 0.1)
_PLAIN_VOTE = 1e3  # temperature at which neighbours weigh the same, but for ties, which go to the nearer class


@dataclass(frozen=True)
class Solved:
    """The classifier of raw features, and what the training images alone say about it, in percent."""

    linear: nn.Linear
    penalty: float
    held_out: dict[float, float]  # penalty -> accuracy on the first fold of a classifier of the others
    cv_top1: float  # mean over the folds, with the chosen penalty
    cv_top1_std: float


def solve(x: Tensor, y: Tensor, classes: int, parts: int, seed: int) -> Solved:
    """Logistic regression on features [n, d], standardised with their own mean and deviation.

    Minimised is the sum of the cross entropies + penalty·½‖W‖². The penalty is the one that does best on the first of
    `parts` folds of the training images when it is fitted to the others (the larger of equals); Wang & Isola's STL-10
    runs too are chosen by five-fold cross-validation on the training images. InputError as `folds`.
    """
    fold = torch.from_numpy(folds(y.cpu().numpy(), parts, seed)).to(y.device)
    (z,), mean, deviation = standardise(x, x)

    def accuracy(part: int, penalty: float) -> float:
        rest = fold != part
        weight, bias = logistic_regression(z[rest], y[rest], classes, penalty)
        return metrics.topk_accuracy(z[~rest] @ weight.T + bias, y[~rest], (1,)).item()

    held_out = {penalty: accuracy(0, penalty) for penalty in PENALTIES}
    penalty = max(PENALTIES, key=held_out.__getitem__)
    of_folds = torch.tensor([held_out[penalty], *(accuracy(part, penalty) for part in range(1, parts))])
    weight, bias = logistic_regression(z, y, classes, penalty)
    linear = nn.Linear(x.shape[1], classes).to(x.device)
    with torch.no_grad():
        linear.weight.copy_(weight / deviation)
        linear.bias.copy_(bias - (weight / deviation) @ mean)
    return Solved(linear, penalty, held_out, of_folds.mean().item(), of_folds.std().item())


def five_nearest(train_x: Tensor, train_y: Tensor, x: Tensor, y: Tensor, classes: int) -> float:
    """Top-1 percentage of a plain vote of the 5 training features with the largest cosine."""
    train_x, x = F.normalize(train_x, dim=1), F.normalize(x, dim=1)
    return metrics.knn_accuracy(train_x, train_y, x, y, classes, k=5, t=_PLAIN_VOTE).item()
