"""Quick-Thought's two encoders of sentences (Logeswaran & Lee, ICLR 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class SentenceEncoder(nn.Module):
    """Encodes sentences by a word embedding and a bidirectional GRU.

    The feature is the last state of both directions.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.gru = nn.GRU(embedding, hidden, bidirectional=True)

    def forward(self, sentences: PackedSequence) -> Tensor:
        """Encodes n sentences, given as ids: unit features [n, 2 · hidden]."""
        words = self.embedding(sentences.data)
        if words.is_cuda:
            _, last = self.gru(sentences._replace(data=words))
            states = torch.cat([last[0], last[1]], dim=1)
        else:
            states = last_states(self.gru, words, sentences.batch_sizes.tolist())[sentences.unsorted_indices]
        return F.normalize(states, dim=1)


def last_states(gru: nn.GRU, words: Tensor, sizes: list[int]) -> Tensor:
    """Computes the last state of both directions on a CPU.

    Returns [n, 2 · hidden], the longest sentence first. words [sum(sizes), C]: packed; `sizes[t]` sentences have a word
    t. The result equals that of `gru`. On a CPU `gru` is twice as slow: the backward pass of each of its time steps
    fills a gradient as large as all words.
    """
    parts = words.split(sizes)
    weights = [[getattr(gru, name) for name in names] for names in gru._all_weights]
    forward = words.new_zeros(sizes[0], gru.hidden_size)
    ended = []
    for part in parts:
        if len(part) < len(forward):
            forward, last = forward.split([len(part), len(forward) - len(part)])
            ended.append(last)
        forward = torch.gru_cell(part, forward, *weights[0])
    backward = words.new_zeros(0, gru.hidden_size)
    for part in reversed(parts):
        begun = words.new_zeros(len(part) - len(backward), gru.hidden_size)
        backward = torch.gru_cell(part, torch.cat([backward, begun]), *weights[1])
    return torch.cat([torch.cat([forward, *reversed(ended)]), backward], dim=1)


class SentencePair(nn.Module):
    """Holds the encoders f and g, without shared weights.

    Initial parameters are uniform in ± `init`.
    """

    def __init__(self, vocabulary: int, embedding: int = 620, hidden: int = 600, init: float = 0.1):
        super().__init__()
        self.encoder_f = SentenceEncoder(vocabulary, embedding, hidden)
        self.encoder_g = SentenceEncoder(vocabulary, embedding, hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init, init)

    def forward(self, sentences: PackedSequence) -> tuple[Tensor, Tensor]:
        """Encodes n sentences, given as ids, by f and g.

        Returns two tensors of unit rows [n, 2 · hidden].
        """
        return self.encoder_f(sentences), self.encoder_g(sentences)
