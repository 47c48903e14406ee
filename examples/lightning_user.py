#!/usr/bin/env python
"""Trains MoCo's pair, queue and losses in a LightningModule.

    python examples/lightning_user.py

Needs `pip install lightning`. Lightning calls the hooks of the module.
The order within a step is that of the paper: update of the key encoder, features, loss, backward, enqueue.
"""

from __future__ import annotations

from typing import Any

import moco  # before Lightning, which imports torchvision: moco/_torchvision_ops.py

# isort: split
import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class MoCoModule(lightning.LightningModule):
    """Trains MoCo on batches of two views [N, 3, S, S]."""

    def __init__(self, arch: str = "smallcnn", dim: int = 64, K: int = 512, temperature: float = 0.2) -> None:
        super().__init__()
        self.model = moco.MoCo(moco.encoders.build_encoder(arch, dim), dim=dim, K=K, m=0.99)
        self.loss = moco.losses.WeightedLoss(temperature=temperature)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        self.model.update_key_encoder()
        q, self.keys = self.model(*batch)
        loss = self.loss(q, self.keys, self.model.queue).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        self.model.enqueue(self.keys)  # on several devices: moco.distributed.gather_rows(self.keys)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.encoder_q.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def main(steps: int = 8) -> MoCoModule:
    lightning.seed_everything(0)
    images = torch.rand(256, 3, 32, 32)
    views = TensorDataset(images + 0.1 * torch.randn_like(images), images + 0.1 * torch.randn_like(images))
    module = MoCoModule()
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(module, DataLoader(views, batch_size=64, shuffle=True, drop_last=True))
    print(f"loss {float(trainer.callback_metrics['loss']):.3f}, {int(module.model.filled)} keys in the queue")
    return module


if __name__ == "__main__":
    main()
