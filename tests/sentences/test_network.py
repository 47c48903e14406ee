"""The encoders: the CPU's way gives nn.GRU's numbers, and a feature is that of its sentence alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moco.sentences.corpus import Corpus
from moco.sentences.measures import held_out_measures
from moco.sentences.network import SentencePair, last_states

CPU = torch.device("cpu")


def text() -> Corpus:
    lengths = [3, 1, 5, 2, 5, 4]
    tokens = np.random.default_rng(0).integers(0, 11, sum(lengths)).astype(np.int32)
    return Corpus(tokens, np.concatenate([[0], np.cumsum(lengths)]))


def pair() -> SentencePair:
    torch.manual_seed(0)
    return SentencePair(11, embedding=4, hidden=3, init=0.5).double()


def test_last_states_are_those_of_the_gru() -> None:
    encoder = pair().encoder_f
    packed = text().batch(np.arange(6), CPU)
    words = encoder.embedding(packed.data)
    _, last = encoder.gru(packed._replace(data=words))
    ours = last_states(encoder.gru, words, packed.batch_sizes.tolist())[packed.unsorted_indices]
    torch.testing.assert_close(ours, torch.cat([last[0], last[1]], dim=1), rtol=1e-12, atol=1e-14)
    weight = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = [
        torch.autograd.grad((x * weight).sum(), tuple(encoder.parameters()), retain_graph=True)
        for x in (ours, torch.cat([last[0], last[1]], dim=1))
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


def test_a_feature_depends_on_its_sentence_alone() -> None:
    model, corpus = pair(), text()
    together = model(corpus.batch(np.arange(6), CPU))
    for i in range(6):
        for whole, alone in zip(together, model(corpus.batch(np.array([i]), CPU)), strict=True):
            torch.testing.assert_close(whole[i], alone[0], rtol=1e-12, atol=1e-14)
    assert torch.allclose(together[0].norm(dim=1), torch.ones(6, dtype=torch.float64))
    assert not torch.allclose(*together), "f and g share nothing"


def test_parameters_start_within_the_range() -> None:
    torch.manual_seed(0)
    values = torch.cat([p.flatten() for p in SentencePair(200, 16, 8, 0.1).parameters()])
    assert values.abs().max() <= 0.1 and values.std().item() > 0.055


def test_held_out_measures_are_of_adjacent_sentences() -> None:
    f, g = pair()(text().batch(np.arange(6), CPU))
    found = held_out_measures(f, g)
    adjacent = [(f[i] - g[j]).norm() ** 2 for i in range(6) for j in range(6) if abs(i - j) == 1]
    spread = [[(-2 * (x[i] - x[j]).norm() ** 2).exp() for i in range(6) for j in range(i)] for x in (f, g)]
    assert found["val_alignment"] == pytest.approx(float(torch.stack(adjacent).mean()))
    assert found["val_uniformity"] == pytest.approx(float(sum(torch.stack(s).mean().log() for s in spread)) / 2)
