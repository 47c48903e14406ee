"""Every two settings together: loss, keys, symmetric, BatchNorm, precision, accumulation, optimiser, multi-crop.

Two settings are refused in one sentence, and these pairs are listed here, or a run with both trains.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import torch

from moco.data.loader import Batch
from moco.encoders import build_encoder
from moco.errors import InputError
from moco.losses.table import LOSSES
from moco.pretrain.__main__ import make_step
from moco.pretrain.heads import projector_of
from moco.pretrain.optimiser import OPTIMIZERS
from moco.pretrain.options import ResolvedPretrainOptions, parse_pretrain

FACTORS: dict[str, dict[str, str]] = {
    "loss": {name: f"--loss {name}" for name in LOSSES},
    "keys": {"queue": "--moco-k 11", "batch": "--keys batch --predictor resnet", "none": "--moco-k 0"},
    "views": {"one way": "", "symmetric": "--symmetric", "queue per view": "--symmetric --queue-per-view"},
    "bn": {
        "local": "--bn local",
        "sync": "--bn sync",
        "split": "--bn split --bn-group-size 2",
        "shuffle": "--bn shuffle",
    },
    "accum": {"1": "", "2": "--accum-steps 2"},
    "crops": {"two": "--image-size 16", "multi": "--crops 2x16@.3-1+2x12@.1-.3"},
    "amp": {"off": "", "bf16": "--amp bf16", "fp16": "--amp fp16"},
    "optimizer": {name: f"--optimizer {name}" for name in OPTIMIZERS},
}
FREE = ("amp", "optimizer")  # nothing refuses them
WITHOUT_QUEUE = {"infonce", "align-uniform", "dcl", "dclw"}
Pair = frozenset[tuple[str, str]]


def pair(a: str, value: str, b: str, other: str) -> Pair:
    return frozenset({(a, value), (b, other)})


REFUSED: set[Pair] = {
    *(pair("loss", name, "keys", keys) for name in LOSSES.keys() - WITHOUT_QUEUE for keys in ("batch", "none")),
    *(pair("keys", keys, "views", "queue per view") for keys in ("batch", "none")),
    *(pair("keys", keys, "accum", "2") for keys in ("batch", "none")),
    pair("keys", "none", "views", "symmetric"),
    pair("keys", "none", "bn", "split"),
    pair("keys", "none", "bn", "shuffle"),
    pair("keys", "none", "crops", "multi"),
}


def options(setting: dict[str, str]) -> ResolvedPretrainOptions:
    words = " ".join(FACTORS[factor][value] for factor, value in setting.items())
    return parse_pretrain(f"folder -a smallcnn --moco-dim 8 -b 6 --seed 0 --lr 0.01 {words}".split(), 1)


def accepted() -> list[dict[str, str]]:
    """The settings that the options' checks let through."""
    checked = [factor for factor in FACTORS if factor not in FREE]
    good = []
    for values in itertools.product(*(FACTORS[factor] for factor in checked)):
        setting = dict(zip(checked, values, strict=True))
        with contextlib.suppress(InputError):
            options(setting)
            good.append(setting)
    free = [dict(zip(FREE, values, strict=True)) for values in itertools.product(*(FACTORS[factor] for factor in FREE))]
    return [{**setting, **more} for setting in good for more in free]


def pairs_of(setting: dict[str, str]) -> set[Pair]:
    return {frozenset(two) for two in itertools.combinations(setting.items(), 2)}


def chosen(settings: list[dict[str, str]]) -> list[dict[str, str]]:
    """Some of the settings that have all pairs of all of them: greedily, the one with the most new pairs first."""
    pairs = [pairs_of(setting) for setting in settings]
    left: set[Pair] = set().union(*pairs)
    picked = []
    while left:
        best = max(range(len(settings)), key=lambda i: len(pairs[i] & left))
        picked.append(settings[best])
        left -= pairs[best]
    return picked


def train(o: ResolvedPretrainOptions) -> None:
    """Two steps: finite losses, moved weights, and keys in the queue where there is one."""
    torch.manual_seed(0)
    step = make_step(o, build_encoder(o.arch, o.moco_dim, o.mlp, projector=projector_of(o)), 0, torch.device("cpu"))
    step.moco.train()
    before = {name: value.clone() for name, value in step.moco.state_dict().items()}
    for number in range(2):
        crops = torch.randint(0, 256, (6, 2, 16, 16, 3), dtype=torch.uint8)
        small = torch.randint(0, 256, (6, 2, 12, 12, 3), dtype=torch.uint8) if o.crops else None
        batch = Batch(crops, torch.arange(6) + 6 * number, torch.arange(6) % 3, small)
        values, measured = step(batch, 0, [6], measure=True)
        assert all(value.isfinite() for value in (*values.values(), *measured.values()))
    assert step.guard.not_applied()[0] == 0 or o.amp == "fp16"  # the scale's start may be too large
    after = step.moco.state_dict()
    moved: Any = {name for name in after if not after[name].equal(before[name])}
    assert o.amp == "fp16" or {"encoder_q.features.0.weight", "encoder_q.fc.weight"} <= moved
    assert o.amp == "fp16" or o.moco_k == 0 or "queue" in moved


def test_every_two_settings_are_refused_or_train() -> None:
    settings = accepted()
    every = {
        pair(a, value, b, other)
        for a, b in itertools.combinations(FACTORS, 2)
        for value in FACTORS[a]
        for other in FACTORS[b]
    }
    possible: set[Pair] = set().union(*(pairs_of(setting) for setting in settings))
    assert every - possible == REFUSED
    for setting in chosen(settings):
        try:
            train(options(setting))
        except Exception as error:
            raise AssertionError(f"{setting} fails: {error}") from error
