"""Measures the tokens per second of a training step of sentence encoders.

    python -m benchmarks.sentence_step [--device cuda]

The step is compared with nn.GRU on a packed and on a padded batch.
The text is made up: numbers of words are drawn from a log-normal distribution with median 13, and cut at 30.
On a CPU the encoders are small, as in launch/recipes/sweep_novels.yaml. On a GPU they have Quick-Thought's size.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from benchmarks.measuring import Row, alternate, device_of, parser, ratio, report
from moco.distributed.global_batch import GlobalBatch
from moco.losses.neighbours import NeighbourLoss
from moco.sentences.corpus import Corpus
from moco.sentences.network import SentenceEncoder, SentencePair
from moco.sentences.step import TrainingStep

LONGEST = 30
# vocabulary, embedding, hidden, sentences a step
SIZES = {"cpu": (10_000, 64, 64, 400), "cuda": (50_000, 620, 600, 400), "trial": (50, 4, 4, 20)}


class _Packed(SentenceEncoder):
    """Runs nn.GRU on the packed batch, on every device."""

    def forward(self, sentences: PackedSequence) -> Tensor:
        _, last = self.gru(sentences._replace(data=self.embedding(sentences.data)))
        return F.normalize(torch.cat([last[0], last[1]], dim=1), dim=1)


class _Padded(SentenceEncoder):
    """Runs nn.GRU on the padded batch.

    Its features are wrong, because it also runs over the padding. Only its cost is measured.
    """

    def forward(self, sentences: PackedSequence) -> Tensor:
        padded, _ = pad_packed_sequence(sentences)
        _, last = self.gru(self.embedding(padded))
        return F.normalize(torch.cat([last[0], last[1]], dim=1), dim=1)


def made_up_text(sentences: int, vocabulary: int) -> Corpus:
    generator = np.random.default_rng(0)
    lengths = np.clip(np.round(generator.lognormal(np.log(13), 0.6, sentences)), 1, LONGEST).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.minimum(generator.zipf(1.2, starts[-1]), vocabulary - 1).astype(np.int32)
    return Corpus(tokens, starts)


def training_step(kind: type[SentenceEncoder], size: tuple[int, int, int, int], device: torch.device) -> TrainingStep:
    vocabulary, embedding, hidden, batch = size
    torch.manual_seed(0)
    pair = SentencePair(vocabulary, embedding, hidden)
    if kind is not SentenceEncoder:
        pair.encoder_f, pair.encoder_g = (kind(vocabulary, embedding, hidden) for _ in range(2))
    optimizer = torch.optim.Adam(pair.to(device).parameters(), 5e-4, fused=True)
    return TrainingStep(pair, NeighbourLoss(), optimizer, GlobalBatch(), [batch], 0.5)


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(argv)
    device = device_of(options)
    size = SIZES["trial" if options.trial else options.device]
    text = made_up_text(size[3], size[0])
    steps = {
        "ours": training_step(SentenceEncoder, size, device),
        "packed": training_step(_Packed, size, device),
        "padded": training_step(_Padded, size, device),
    }

    def work(step: TrainingStep) -> Any:
        return step(text.batch(np.arange(len(text)), device))

    contenders = {name: lambda step=step: work(step) for name, step in steps.items()}
    times = alternate(contenders, options.rounds, device)
    words, width = len(text.tokens), int(np.diff(text.starts).max())
    waste = 100 * (1 - words / (len(text) * width))
    rows = [
        Row("tokens trained on per second", "–", words / statistics.median(times["ours"]), "tokens/s"),
        Row("step, time saved", "nn.GRU, packed", ratio(times, "packed", "ours")),
        Row("step, time saved", "nn.GRU, padded", ratio(times, "padded", "ours")),
        Row("padding in a batch", f"padded: {waste:.0f} %", 0, "%"),
    ]
    report("sentence_step", options, rows, seconds=times, size=size, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
