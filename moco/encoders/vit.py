"""Defines the vision transformers of MoCo v3.

Chen, Xie & He, ICCV 2021; facebookresearch/moco-v3's `vits.py`.
They are timm's transformer with another initialisation: fixed 2-D sine-cosine positions, and Xavier-uniform weights
for query, key and value as three matrices. vit_small has 12 heads of 32; timm's vit_small_patch16_224 has 6 of 64.
Their tensors have moco-v3's names.
moco/encoders/networks.py imports this file only when needed, because timm takes half a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class MoCoViT(VisionTransformer):
    """Implements a transformer over patches: `[N, 3, S, S] -> [N, num_classes]`.

    The output comes from the class token. S is a multiple of `patch`; ValueError if not.
    width: of the tokens, a multiple of 4 and of `heads`.
    conv_stem: four 3x3 convolutions of stride 2 instead of the patches' projection (Xiao et al. 2021).
    It needs `patch` 16 and a width that is a multiple of 8; ValueError if not.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int = 224,
        width: int = 384,
        heads: int = 12,
        depth: int = 12,
        patch: int = 16,
        conv_stem: bool = False,
    ) -> None:
        if image_size % patch:
            raise ValueError(f"it must be a multiple of {patch}, the side of a patch")
        super().__init__(
            img_size=image_size,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=num_classes,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            embed_layer=ConvStem if conv_stem else timm.layers.PatchEmbed,
            weight_init="moco",
        )
        with torch.no_grad():
            if not conv_stem:
                projection = self.patch_embed.proj
                bound = math.sqrt(6 / (3 * patch**2 + width))
                nn.init.uniform_(projection.weight, -bound, bound)
                nn.init.zeros_(projection.bias)
        # a parameter, as in moco-v3's files
        positions = torch.cat([torch.zeros(1, 1, width), sincos_positions(image_size // patch, width)[None]], dim=1)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)


def sincos_positions(side: int, width: int, temperature: float = 10_000.0) -> Tensor:
    """Returns positions of side x side patches: fp32 [side², width].

    The quarters of `width` are sin y, cos y, sin x and cos x. y, x: row and column of a patch, counted from 0.
    The frequencies are temperature^(-4i/width). ValueError unless `width` is a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a width of {width} must be a multiple of 4")
    frequencies = temperature ** -(torch.arange(width // 4) / (width // 4))
    y, x = (grid.flatten()[:, None] * frequencies for grid in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=1)


class ConvStem(nn.Module):
    """Implements four 3x3 convolutions of stride 2, then a 1x1.

    [N, 3, S, S] -> [N, (S/16)², width], with BatchNorm and ReLU. It takes the arguments of timm's PatchEmbed.
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        if patch_size != 16 or embed_dim % 8:
            raise ValueError("a convolutional stem needs patches of 16 pixels and a width that is a multiple of 8")
        self.img_size = (img_size, img_size)
        self.patch_size = (16, 16)
        self.grid_size = (img_size // 16, img_size // 16)
        self.num_patches = self.grid_size[0] ** 2
        widths = [in_chans, *(embed_dim // 8 * 2**i for i in range(4))]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 3, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


VITS: dict[str, Callable[[int, int], nn.Module]] = {
    "vit_small": partial(MoCoViT, width=384, heads=12),
    "vit_base": partial(MoCoViT, width=768, heads=12),
    "vit_conv_small": partial(MoCoViT, width=384, heads=12, depth=11, conv_stem=True),
    "vit_conv_base": partial(MoCoViT, width=768, heads=12, depth=11, conv_stem=True),
}
"""moco-v3's names: (num_classes, image size) -> network."""
