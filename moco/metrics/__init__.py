"""Metrics of features on the unit sphere.

They are pure functions of [n, C] rows.
"""

from moco.metrics.functions import (
    alignment as alignment,
    contrastive_accuracy as contrastive_accuracy,
    effective_rank as effective_rank,
    knn_accuracy as knn_accuracy,
    knn_predict as knn_predict,
    tolerance as tolerance,
    topk_accuracy as topk_accuracy,
    topk_correct as topk_correct,
    uniformity as uniformity,
    uniformity_bounds as uniformity_bounds,
)
from moco.metrics.geometry import (
    ClassCollapse as ClassCollapse,
    Similarities as Similarities,
    class_collapse as class_collapse,
    similarity_histograms as similarity_histograms,
)
