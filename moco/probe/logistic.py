"""Solves logistic regression on computed features.

It also measures the accuracy with few labels. The problem is solved to its optimum in fp64. So the result depends on
the features alone, not on a learning rate or on epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco import metrics
from moco.data.source import folds
from moco.errors import InputError
from moco.randomness import Purpose, permutation, stream_key


def few_label_accuracy(
    train_x: Tensor, train_y: Tensor, val_x: Tensor, val_y: Tensor, per_class: int = 5, draws: int = 5, seed: int = 0
) -> tuple[float, float]:
    """Returns top-1 accuracy in percent with `per_class` labels per class.

    The two numbers are mean and standard deviation over draws. Features [n, d] are standardised with mean and deviation
    of all training features, which needs no labels. The classifier is logistic regression with scikit-learn's default
    penalty: Σ cross entropy + ½‖W‖². The labels of draw i depend only on (seed, i) and on the order of the training
    samples. InputError if a class has too few images.
    """
    (train, val), _, _ = standardise(train_x, train_x, val_x)
    classes = int(max(train_y.max(), val_y.max())) + 1
    members = [(train_y == c).nonzero()[:, 0].cpu() for c in range(classes)]
    if (least := min(len(rows) for rows in members)) < per_class:
        raise InputError(
            f"{per_class} labels per class were wanted, but one class has only {least} images: ask for fewer"
        )
    accuracies = []
    for draw in range(draws):
        keys = [stream_key(seed, draw, Purpose.FEW_LABEL, c) for c in range(classes)]
        rows = torch.cat([m[permutation(key, len(m))[:per_class]] for key, m in zip(keys, members, strict=True)])
        weight, bias = logistic_regression(train[rows], train_y[rows], classes)
        accuracies.append(metrics.topk_accuracy(val @ weight.T + bias, val_y, (1,)).item())
    spread = math.sqrt(sum((a - sum(accuracies) / draws) ** 2 for a in accuracies) / max(1, draws - 1))
    return sum(accuracies) / draws, spread


def standardise(of: Tensor, *features: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Standardises each of `features` [n, d] with `of`'s statistics, in fp64.

    Returns (standardised features, mean of `of`, standard deviation of `of`).
    """
    deviation, mean = torch.std_mean(of.double(), dim=0, correction=0)
    deviation[deviation < 1e-12] = 1  # a constant feature
    return [(x.double() - mean) / deviation for x in features], mean, deviation


def logistic_regression(
    x: Tensor, y: Tensor, classes: int, penalty: float = 1.0, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Minimises Σ cross entropy + penalty·½‖weight‖²; returns weight and bias.

    weight [classes, d], bias [classes]. x: fp64 [n, d]. penalty: above 0. start: weight and bias to begin with; zeros
    by default. The problem is convex and the batch is full, so the result is the same from each start up to rounding.
    On one machine it has the same bits each time.
    """
    # L-BFGS needs few steps where curvature is near 1 in all directions. At zero, the curvature of a class's weight and
    # bias is [X 1]ᵀ[X 1] / classes + penalty for the weight. So the variables are scaled by its root's inverse.
    n, d = x.shape
    curvature = x.new_full((d + 1, d + 1), n)
    curvature[:d, :d] = x.T @ x
    curvature[d, :d] = curvature[:d, d] = x.sum(dim=0)
    curvature /= classes
    curvature.diagonal()[:d] += penalty
    root = torch.linalg.cholesky(curvature)
    identity = torch.eye(d + 1, dtype=x.dtype, device=x.device)
    unscale = torch.linalg.solve_triangular(root.T, identity, upper=True)
    weight, bias = start or (x.new_zeros((classes, d)), x.new_zeros(classes))
    scaled = (root.T @ torch.cat([weight.T, bias[None]])).requires_grad_()
    solver = torch.optim.LBFGS(
        [scaled],
        max_iter=500,
        tolerance_grad=1e-5,  # the loss is within ½‖gradient‖² of its minimum
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        both = unscale @ scaled
        loss = F.cross_entropy(x @ both[:d] + both[d], y, reduction="sum") + penalty / 2 * both[:d].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[arg-type, unused-ignore]
    both = unscale @ scaled.detach()
    return both[:d].T, both[d]


PENALTIES = (1000.0, 100.0, 10.0, 1.0, 0.1)
_PLAIN_VOTE = 1e3  # temperature at which neighbours have equal weight; a tie goes to the nearer class


@dataclass(frozen=True)
class Solved:
    """Holds the classifier of raw features, and accuracies on training images.

    The accuracies are in percent.
    """

    linear: nn.Linear
    penalty: float
    held_out: dict[float, float]  # penalty -> accuracy on the first fold, trained on the others
    cv_top1: float  # mean over the folds, with the chosen penalty
    cv_top1_std: float


def solve(x: Tensor, y: Tensor, classes: int, parts: int, seed: int) -> Solved:
    """Solves logistic regression on standardised features [n, d].

    It minimises Σ cross entropy + penalty·½‖W‖². The penalty is chosen on the training images: classifiers are
    fitted without the first of `parts` folds, and the best one on that fold counts. Of equal penalties the larger is
    taken. Wang & Isola also choose their STL-10 runs by five-fold cross-validation on the training images.
    InputError as for `folds`.
    """
    fold = torch.from_numpy(folds(y.cpu().numpy(), parts, seed)).to(y.device)
    (z,), mean, deviation = standardise(x, x)

    def without(part: int, penalty: float, start: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        rest = fold != part
        return logistic_regression(z[rest], y[rest], classes, penalty, start)

    def accuracy(part: int, solution: tuple[Tensor, Tensor]) -> float:
        weight, bias = solution
        held = fold == part
        return metrics.topk_accuracy(z[held] @ weight.T + bias, y[held], (1,)).item()

    # each solution is a start near the next one
    solutions: dict[float, tuple[Tensor, Tensor]] = {}
    solution = None
    for penalty in PENALTIES:
        solution = without(0, penalty, solution)
        solutions[penalty] = solution
    held_out = {penalty: accuracy(0, solution) for penalty, solution in solutions.items()}
    penalty = max(PENALTIES, key=held_out.__getitem__)
    start = solutions[penalty]
    others = [accuracy(part, without(part, penalty, start)) for part in range(1, parts)]
    of_folds = torch.tensor([held_out[penalty], *others])
    weight, bias = logistic_regression(z, y, classes, penalty, start)
    linear = nn.Linear(x.shape[1], classes).to(x.device)
    with torch.no_grad():
        linear.weight.copy_(weight / deviation)
        linear.bias.copy_(bias - (weight / deviation) @ mean)
    return Solved(linear, penalty, held_out, of_folds.mean().item(), of_folds.std().item())


def five_nearest(train_x: Tensor, train_y: Tensor, x: Tensor, y: Tensor, classes: int) -> float:
    """Returns top-1 accuracy in percent of the 5 nearest training features.

    They vote with equal weight. The nearest features are those with the largest cosine.
    """
    train_x = F.normalize(train_x, dim=1)
    x = F.normalize(x, dim=1)
    return metrics.knn_accuracy(train_x, train_y, x, y, classes, k=5, t=_PLAIN_VOTE).item()
