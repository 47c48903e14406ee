"""Quick-Thought's two encoders of sentences (Logeswaran & Lee, ICLR 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class SentenceEncoder(nn.Module):
    """Word embedding and a bidirectional GRU; the feature is the last state of both directions."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.gru = nn.GRU(embedding, hidden, bidirectional=True)

    def forward(self, sentences: PackedSequence) -> Tensor:
        """Ids of n sentences -> unit features [n, 2 · hidden]."""
        _, last = self.gru(sentences._replace(data=self.embedding(sentences.data)))
        return F.normalize(torch.cat([last[0], last[1]], dim=1), dim=1)


class SentencePair(nn.Module):
    """The encoders f and g, which share nothing. All parameters start uniform in ± `init`."""

    def __init__(self, vocabulary: int, embedding: int = 620, hidden: int = 600, init: float = 0.1):
        super().__init__()
        self.encoder_f = SentenceEncoder(vocabulary, embedding, hidden)
        self.encoder_g = SentenceEncoder(vocabulary, embedding, hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init, init)

    def forward(self, sentences: PackedSequence) -> tuple[Tensor, Tensor]:
        """Ids of n sentences -> f and g of each, unit rows [n, 2 · hidden]."""
        return self.encoder_f(sentences), self.encoder_g(sentences)
