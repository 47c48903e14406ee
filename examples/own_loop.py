#!/usr/bin/env python
"""Trains MoCo in a loop of your own, in thirty lines.

python examples/own_loop.py

It does not use the mains. The images are scikit-learn's digits.
"""

import sys

import torch
from sklearn.datasets import load_digits

import moco

torch.manual_seed(0)
scans = torch.from_numpy(load_digits().images).float()[:, None].expand(-1, 3, -1, -1) / 16
images = torch.nn.functional.interpolate(scans, size=32, mode="bilinear")
labels = torch.from_numpy(load_digits().target)


def view(x: torch.Tensor) -> torch.Tensor:
    shifted = torch.roll(x, tuple(torch.randint(-3, 4, (2,)).tolist()), (2, 3))
    return (shifted + 0.2 * torch.randn_like(x)).clamp(0, 1)


model = moco.MoCo(moco.encoders.build_encoder("smallcnn", 64), dim=64, K=512, m=0.99)
loss_function = moco.losses.WeightedLoss(temperature=0.1)  # or WeightedLoss(contr_w=0, align_w=3, unif_w=1)
optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
for step in range(int(sys.argv[1]) if len(sys.argv) > 1 else 60):
    batch = images[torch.randint(len(images), (128,))]
    model.update_key_encoder()
    q, k = model(view(batch), view(batch))
    loss = loss_function(q, k, model.queue).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.enqueue(k)
    if step % 20 == 19:
        print(f"step {step + 1}: loss {loss:.3f}, uniformity {moco.metrics.uniformity(q.detach()):.2f}")

with torch.no_grad():
    features = torch.nn.functional.normalize(moco.encoders.trunk(model.encoder_q).eval()(images), dim=1)
accuracy = moco.metrics.knn_accuracy(features[:1400], labels[:1400], features[1400:], labels[1400:], classes=10, k=20)
print(f"kNN {float(accuracy):.1f} %")
