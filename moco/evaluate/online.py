"""Measures an encoder during its training.

Some measures need no labels; kNN is measured if there are labels. All ranks work together. The evaluator yields (name,
value); accuracies are in percent.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco import metrics
from moco.data.augment import Augment
from moco.data.source import Source, check_same_classes, labelled
from moco.distributed import all_reduce_sum, share
from moco.encoders import feature_dim, trunk
from moco.evaluate.features import TrunkAndOutput, centre_crops, encode, extract_features, in_order
from moco.metrics.table import METRICS
from moco.run.options import DataOptions


class OnlineEvaluator:
    """Measures features and outputs of an encoder during training.

    kNN is measured on the features; alignment, uniformity and tolerance on the outputs. Images and augmented views are
    the same at every call, so only the encoder changes.
    """

    def __init__(
        self,
        train: Source,
        val: Source,
        options: DataOptions,
        device: torch.device,
        *,
        recipe: str,
        crop_min: float | None = None,
        size: int,
        seed: int = 0,
        k: int = 200,
        t: float = 0.1,
        every: int = 1,
    ) -> None:
        """Builds the loaders and the augmentations.

        recipe, crop_min, size: of the crops. seed: of the views. k, t: neighbours and temperature of kNN. every: epochs
        from one evaluation to the next.
        """
        of_views = options.find_recipe(recipe, crop_min)
        self.every = every
        self.k = k
        self.t = t
        self.labelled = bool((train.labels >= 0).any() and (val.labels >= 0).all())
        if self.labelled:
            check_same_classes(train, val)
        self.classes = len(val.classes)
        self.plain = Augment(of_views.for_evaluation(), seed)
        self.augment = Augment(of_views, seed)
        self.bank = centre_crops(labelled(train), of_views, size, options, device) if self.labelled else None
        self.centre = centre_crops(val, of_views, size, options, device)
        self.pairs = in_order(
            val, size, options, device, views=2, scale=of_views.scale, ratio=of_views.ratio, seed=seed
        )

    def __call__(self, encoder: nn.Module, classifier: nn.Module | None = None) -> Iterator[tuple[str, float]]:
        """Yields (name, value) of each measure.

        All ranks must read it to the end. The values are `knn_top1` and `online_top1` in percent, `val_alignment` of
        two augmented views (α = 2), `val_uniformity` (t = 2) and `val_tolerance`. `knn_top1`, `online_top1` and
        `val_tolerance` need labels. `online_top1` also needs a classifier of features.
        """
        x, labels = extract_features(TrunkAndOutput(encoder), self.centre, self.plain)
        features, outputs = x.split([feature_dim(encoder), x.shape[1] - feature_dim(encoder)], dim=1)
        outputs = F.normalize(outputs, dim=1)
        if classifier is not None and self.labelled:
            with torch.no_grad():
                right = classifier(features).argmax(dim=1) == labels
            yield METRICS["online_top1"].logged, 100 * right.float().mean().item()
        if self.bank is not None:
            bank, bank_labels = extract_features(trunk(encoder), self.bank, self.plain, normalise=True)
            features = F.normalize(features, dim=1)
            top1 = shared_knn_accuracy(bank, bank_labels, features, labels, self.classes, self.k, self.t)
            yield METRICS["knn_top1"].logged, top1
        views, _ = encode(encoder, self.pairs, self.augment)
        q, k = F.normalize(views, dim=2).unbind(dim=1)
        yield METRICS["alignment"].logged, metrics.alignment(q, k).item()
        if len(outputs) > 1:
            yield METRICS["uniformity"].logged, metrics.uniformity(outputs).item()
        if self.labelled and len(labels) > len(labels.unique()):
            yield METRICS["tolerance"].logged, metrics.tolerance(outputs, labels).item()


def shared_knn_accuracy(
    train_x: Tensor, train_y: Tensor, val_x: Tensor, val_y: Tensor, classes: int, k: int, t: float
) -> float:
    """Returns `metrics.knn_accuracy` of features that every rank holds, in percent.

    Each rank computes its share of the validation rows.
    """
    mine = share(len(val_x))
    right = metrics.knn_predict(train_x, train_y, val_x[mine], classes, k, t) == val_y[mine]
    return 100 * all_reduce_sum(right.sum()).item() / len(val_y)
