"""Gives main_moco.py a loss of your own.

    python main_moco.py --dataset digits -a smallcnn --loss examples.own_loss:LearnedTemperature --loss-arg start=0.2

The loss is InfoNCE with a learned temperature, as in CLIP.
A loss is built once, and called as `loss(q, k, queue, labels, queue_labels)`.
If it is an nn.Module, its parameters are trained. They and its buffers are saved and resumed with the run.
"""

import math

import torch
from torch import Tensor, nn

from moco.losses import LossOutput, contrastive_loss


class LearnedTemperature(nn.Module):
    """Computes InfoNCE with a learned temperature.

    q, k: unit-norm queries and keys [N, C]. queue: unit-norm columns [C, K], without gradient.
    """

    def __init__(self, start: float = 0.07) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(start)))

    def forward(self, q: Tensor, k: Tensor, queue: Tensor, labels: Tensor, queue_labels: Tensor) -> LossOutput:
        scale = self.log_scale.clamp(max=math.log(100)).exp()
        loss = contrastive_loss(scale * q, k, queue, temperature=1.0)
        return LossOutput(loss, {"temperature": 1 / scale.detach()})
