"""Table of the metrics, with one row for each.

A row has names, title, unit, digits, better direction and function.
The online evaluation, `moco.evaluate`, the console and the report read it.
A new metric is a function and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from moco.errors import InputError
from moco.metrics.functions import alignment, effective_rank, tolerance, uniformity
from moco.metrics.geometry import ClassCollapse, class_collapse


@dataclass
class Features:
    """Holds the features that the metrics read, as unit rows."""

    x: Tensor  # validation images [n, d]
    labels: Tensor  # int64 [n], -1 is unknown
    q: Tensor  # one view of each validation image [n, d]
    k: Tensor  # the other view
    bank: Tensor | None  # training images [m, d], for kNN
    bank_labels: Tensor | None  # int64 [m]
    classes: int  # number of classes of the data set
    alpha: float  # exponent of alignment
    t: float  # t of uniformity
    predict: Callable[[Tensor, Tensor, Tensor, Tensor], float]
    """(training rows, their labels, validation rows, their labels) -> accuracy of kNN in percent."""

    @cached_property
    def collapse(self) -> ClassCollapse:
        """Returns `class_collapse` of x.

        InputError where the labels do not allow it.
        """
        return class_collapse(self.x, self.labels)

    @cached_property
    def own_similarities(self) -> Tensor:
        """Returns the similarity of each image's two views: float64 [n]."""
        return (self.q.double() * self.k.double()).sum(1)


def _knn(f: Features) -> float:
    known = f.labels >= 0
    if not known.any() or f.classes == 0:
        raise InputError("kNN needs labels, but the validation images have none")
    if f.bank is None or f.bank_labels is None:
        raise InputError("kNN needs labelled training images, but there are none")
    if f.classes < 2:
        raise InputError("kNN needs two classes, but the data has one")
    return f.predict(f.bank, f.bank_labels, f.x[known], f.labels[known])


def _positive(f: Features) -> Tensor:
    _negative(f)  # both or none
    return f.own_similarities.mean()


def _negative(f: Features) -> Tensor:
    n = len(f.q)
    if n < 2:
        raise InputError(f"negatives are pairs of images and need 2 images, not {n}")
    # over all ordered pairs i ≠ j without a loop, as in metrics.tolerance
    pairs = f.q.double().sum(0) @ f.k.double().sum(0) - f.own_similarities.sum()
    return pairs / (n * (n - 1))


@dataclass(frozen=True)
class Metric:
    """Holds one row of the table.

    function: None if the metric is not computed from features.
    logged: "" if no run logs it.
    """

    name: str  # in the JSON file of moco.evaluate
    title: str
    function: Callable[[Features], float | Tensor] | None
    better: str = ""  # "higher" or "lower"; "" if neither is
    logged: str = ""  # in log.jsonl, of the validation images; a probe's is in lincls.json
    unit: str = ""
    beside: str = ""  # shown after the value: its bound or target
    digits: int = 3  # after the point, in tables
    console: str = ".4f"

    @property
    def heading(self) -> str:
        """Returns the heading of a column or an axis.

        An example is "kNN top-1 [%]".
        """
        return f"{self.title} [{self.unit}]" if self.unit else self.title

    @property
    def direction(self) -> str:
        return f"{self.better} is better" if self.better else ""


def _accuracy(name: str, title: str, function: Callable[[Features], float] | None) -> Metric:
    return Metric(name, title, function, "higher", name, unit="%", digits=2, console="5.1f")


_ROWS = (
    _accuracy("lincls_top1", "linear top-1", None),
    _accuracy("knn_top1", "kNN top-1", _knn),
    _accuracy("online_top1", "online linear top-1", None),
    _accuracy("val_mr_acc1", "MR accuracy", None),
    _accuracy("val_cr_acc1", "CR accuracy", None),
    Metric("depth_mse", "depth MSE", None, "lower", "depth_mse", unit="m²", digits=4),
    Metric("depth_rmse", "depth RMSE", None, "lower", "depth_rmse", unit="m"),
    Metric("depth_abs_rel", "depth AbsRel", None, "lower", "depth_abs_rel"),
    _accuracy("depth_delta1", "depth δ < 1.25", None),
    Metric("alignment", "alignment", lambda f: alignment(f.q, f.k, f.alpha), "lower", "val_alignment"),
    Metric("uniformity", "uniformity", lambda f: uniformity(f.x, f.t), "lower", "val_uniformity", beside="lowest"),
    Metric("tolerance", "tolerance", lambda f: tolerance(f.x, f.labels), "", "val_tolerance"),
    Metric("effective_rank", "effective rank", lambda f: effective_rank(f.x), "higher"),
    Metric("positive_similarity", "mean similarity, positives", _positive, "higher"),
    Metric("negative_similarity", "mean similarity, negatives", _negative, "lower"),
    Metric("within_between", "within/between classes (NC1)", lambda f: f.collapse.within_between, "lower"),
    Metric("own_mean_cosine", "cosine to own class mean", lambda f: f.collapse.own_mean_cosine, "higher"),
    Metric("simplex_cosine", "cosine of class means", lambda f: f.collapse.simplex_cosine, beside="simplex"),
    Metric("simplex_deviation", "deviation from the simplex (NC2)", lambda f: f.collapse.simplex_deviation, "lower"),
    Metric("loss", "loss", None, "lower", "loss", console="7.4f"),
)
METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}
OF_FEATURES: dict[str, Metric] = {row.name: row for row in _ROWS if row.function is not None}
LOGGED: dict[str, Metric] = {row.logged: row for row in _ROWS if row.logged}
