"""Defines networks that torchvision and timm lack.

The small-image ResNets (3x3 stem of stride 1, no max-pool) are those of MoCo's CIFAR demo and of Wang & Liu.
SmallAlexNet is that of Wang & Isola's STL-10 runs. SmallCNN has four layers, for images of 32 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision import models


class SmallAlexNet(nn.Module):
    """Implements AlexNet for 64 x 64 images, with half the channels.

    It has BatchNorm. Source: Wang & Isola, ICML 2020, for STL-10 and NYU-Depth.
    `[N, 3, 64, 64] -> [N, num_classes]`. `blocks[i]` is layer i + 1 of the paper (conv1 ... conv5, fc6, fc7), `fc` fc8.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()

        def conv(c_in: int, c_out: int, pool: bool) -> nn.Sequential:
            layers = [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers, *([nn.MaxPool2d(3, 2)] if pool else []))

        def dense(d_in: int, d_out: int) -> list[nn.Module]:
            return [nn.Linear(d_in, d_out, bias=False), nn.BatchNorm1d(d_out), nn.ReLU(inplace=True)]

        self.blocks = nn.Sequential(
            conv(3, 96, pool=True),
            conv(96, 192, pool=True),
            conv(192, 384, pool=False),
            conv(384, 384, pool=False),
            conv(384, 192, pool=True),
            nn.Sequential(nn.Flatten(), *dense(192 * 7 * 7, 4096)),  # 64 -> 31 -> 15 -> 7 pixels
            nn.Sequential(*dense(4096, 4096)),
        )
        self.fc = nn.Linear(4096, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x))


class SmallCNN(nn.Module):
    """Implements four 3x3 convolutions, then the mean over pixels.

    BatchNorm and ReLU follow each convolution. The first three have stride 2.
    `[N, 3, S, S] -> [N, num_classes]`, made for S = 32. Two CPU cores can pretrain it on the digits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out, stride in ((3, 32, 2), (32, 64, 2), (64, 128, 2), (128, 128, 1)):
            layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def _small_resnet(name: str) -> Callable[[int], nn.Module]:
    def build(num_classes: int) -> nn.Module:
        encoder = models.get_model(name, weights=None, num_classes=num_classes)
        encoder.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(encoder.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own convs
        encoder.maxpool = nn.Identity()
        return encoder

    return build


OWN: dict[str, Callable[[int], nn.Module]] = {
    "resnet18_small": _small_resnet("resnet18"),
    "resnet34_small": _small_resnet("resnet34"),
    "resnet50_small": _small_resnet("resnet50"),
    "smallalexnet": SmallAlexNet,
    "smallcnn": SmallCNN,
}
