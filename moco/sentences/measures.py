"""Computes features of sentences, and alignment and uniformity of held-out text."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moco import distributed, metrics
from moco.sentences.corpus import Corpus
from moco.sentences.network import SentencePair

_AT_ONCE = 512  # sentences


@torch.no_grad()
def encode(pair: SentencePair, corpus: Corpus, device: torch.device) -> tuple[Tensor, Tensor]:
    """Encodes every sentence by f and g.

    Returns f and g on every rank: unit rows [n, C]. Each rank encodes its part.
    """
    training = pair.training
    pair.eval()
    own = np.arange(len(corpus))[distributed.share(len(corpus))]
    parts = [pair(corpus.batch(own[i : i + _AT_ONCE], device)) for i in range(0, len(own), _AT_ONCE)]
    pair.train(training)
    width = 2 * pair.encoder_f.gru.hidden_size
    sizes = distributed.shares(len(corpus), distributed.world_size())
    f, g = (
        distributed.gather_rows(torch.cat([torch.empty(0, width, device=device), *(part[i] for part in parts)]), sizes)
        for i in (0, 1)
    )
    return f, g


def held_out_measures(f: Tensor, g: Tensor) -> dict[str, float]:
    """Measures alignment and uniformity of consecutive sentences.

    Alignment (α 2) compares f_i with g_{i±1}. Uniformity (t 2) is the mean of that of f and that of g. f, g [n, C]:
    unit rows of n ≥ 2 consecutive sentences.
    """
    forward = metrics.alignment(f[:-1], g[1:])
    backward = metrics.alignment(f[1:], g[:-1])
    return {
        "val_alignment": float((forward + backward) / 2),
        "val_uniformity": float((metrics.uniformity(f) + metrics.uniformity(g)) / 2),
    }
