"""Histograms of similarities, and the collapse of classes to a simplex.

Pure functions as in moco/metrics/functions.py: [n, C] rows, exact, in chunks. InputError where a value does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moco.errors import InputError
from moco.metrics.functions import check_finite, full_fp32, rows_at_once, wide


@dataclass(frozen=True)
class Similarities:
    """Holds counts of cosines in equal bins from -1 to 1.

    Each field is int64 [bins]. The last bin includes 1.
    """

    positive: Tensor  # two views of one image
    negative: Tensor  # views of two images, each ordered pair
    same_class: Tensor | None  # negatives that share a label: false negatives; None without labels


@full_fp32()
@torch.no_grad()
def similarity_histograms(q: Tensor, k: Tensor, labels: Tensor | None = None, bins: int = 100) -> Similarities:
    """Returns histograms of q_i·k_i (positives) and q_i·k_j, i ≠ j (negatives).

    q, k: paired unit rows [n, C].
    labels: int64 [n], -1 is unknown.
    Wang & Liu (CVPR 2021) show the effect of the temperature with such histograms.
    InputError if a feature is not finite.
    """
    q = wide(q)
    k = wide(k)
    check_finite(q, k)
    total = torch.zeros(bins, dtype=torch.int64, device=q.device)
    positive = total.clone()
    same = total.clone()
    for start in range(0, len(q), step := rows_at_once(len(k))):
        similarity = q[start : start + step] @ k.T
        total += _count(similarity, bins)
        positive += _count(similarity.diagonal(start), bins)  # from the same product, so `total - positive` is exact
        if labels is not None:
            mine = labels[start : start + step, None]
            alike = (mine == labels) & (mine >= 0)
            alike.diagonal(start).fill_(False)
            same += _count(similarity[alike], bins)
    return Similarities(positive, total - positive, same if labels is not None else None)


def _count(similarity: Tensor, bins: int) -> Tensor:
    """Returns the counts per bin.

    fp32 counts exactly up to 2²⁴, which limits the chunks.
    """
    return torch.histc(similarity.clamp(-1, 1), bins, -1, 1).long()


@dataclass(frozen=True)
class ClassCollapse:
    """Holds measures of neural collapse (Papyan, Han & Donoho, PNAS 2020).

    Neural collapse is also the optimum of SupCon (Graf et al., ICML 2021).
    """

    within_between: float  # NC1: tr(Σ_W Σ_B⁺) / classes; 0 if every class is a point
    own_mean_cosine: float  # mean cosine of a sample and its class's mean; 1 if every class is a direction
    simplex_cosine: float  # mean cosine of two centred class means; -1/(classes - 1) for a simplex
    simplex_deviation: float  # NC2: mean |cosine of two centred class means + 1/(classes - 1)|; 0 for a simplex
    classes: int

    @property
    def simplex_target(self) -> float:
        return -1 / (self.classes - 1)


@torch.no_grad()
def class_collapse(x: Tensor, labels: Tensor) -> ClassCollapse:
    """Measures the class collapse of features x [n, d], in fp64.

    labels: int64 [n]; samples with -1 are left out.
    Σ_W is the mean over samples of (x - class mean)(x - class mean)ᵀ.
    Σ_B is the same over classes, of (class mean - mean of the class means).
    InputError without two classes, without a class of two samples, or if a class mean lies in the centre of all means.
    """
    check_finite(x)
    known = labels >= 0
    x = x.detach()[known].double()
    names, labels, count = labels[known].unique(return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(f"class collapse needs two classes, and the labelled samples have {len(names)}: use more")
    if count.max() < 2:
        raise InputError("class collapse needs two samples of a class, and every class has one: use more images")
    means = x.new_zeros((len(names), x.shape[1])).index_add_(0, labels, x) / count[:, None]
    centred = means - means.mean(0)
    norms = centred.norm(dim=1)
    if not norms.min() > 1e-10 * means.norm(dim=1).max():
        raise InputError("the mean of a class lies in the centre of all means, so it has no direction to compare")
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    used = spread > spread[0] * 1e-10  # the means are centred, so at least one axis has no spread
    # Σ_B⁺ = classes · Σ_r axis axisᵀ / spread²: only the components along those axes are needed, never [d, d]
    along = (x - means[labels]) @ axes[used].T
    cosines = F.normalize(centred, dim=1) @ F.normalize(centred, dim=1).T
    pairs = cosines[~torch.eye(len(names), dtype=torch.bool, device=x.device)]
    own = F.cosine_similarity(x, means[labels], dim=1)
    return ClassCollapse(
        within_between=(along.square().mean(0) / spread[used].square()).sum().item(),
        own_mean_cosine=own.mean().item(),
        simplex_cosine=pairs.mean().item(),
        simplex_deviation=(pairs + 1 / (len(names) - 1)).abs().mean().item(),
        classes=len(names),
    )
