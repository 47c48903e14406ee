"""Tests that checkpoints compute the same features in other projects.

    python -m benchmarks.interop [--write]

With --write it puts the table into docs/interop.md. Every row is one trial.
One side writes an encoder with random weights and random BatchNorm statistics, and the other side reads it.
The features of real photographs are compared; moco/export/__main__.py describes the comparison.
If a library is not installed, its row names it. tests/export/test_interop.py runs the same trials.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco.encoders import build_encoder, trunk
from moco.encoders.files import load_trunk, read_encoder
from moco.encoders.preprocessing import Preprocessing
from moco.errors import InputError
from moco.export.__main__ import export, photographs, prepare
from moco.export.formats import FORMATS
from moco.run import checkpoint
from moco.run.provenance import git_state

PAGE = Path(__file__).resolve().parent.parent / "docs" / "interop.md"
SIZE = 64
Made = tuple[Path, nn.Module]  # a foreign checkpoint, and the foreign network (images -> features) that is in it


@dataclass(frozen=True)
class Trial:
    """Describes one row of the table.

    `run(folder)` returns (verified by, largest difference relative to the largest feature).
    """

    name: str
    direction: str
    run: Callable[[Path], tuple[str, float]]
    needs: tuple[str, ...] = ()
    refused: str = ""  # a part of the error message, if this project has no equal network

    def missing(self) -> list[str]:
        return [module for module in self.needs if find_spec(module) is None]


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Gives a network random BatchNorm statistics, and evaluation mode.

    The statistics are not 0 and 1, so a trial sees it if they are lost.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(generator=generator)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
    return network.eval()


def resnet18(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(build_encoder("resnet18", 8), seed)


def prefixed(network: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in network.state_dict().items()}


# Out: what moco.export writes and the other library reads


def outwards(to: str) -> Callable[[Path], tuple[str, float]]:
    def run(folder: Path) -> tuple[str, float]:
        options = {"recipe": "v2", "image_size": SIZE, "loss": "infonce"}
        path = folder / "checkpoint_0000.pth.tar"
        weights = prefixed(resnet18(), "module.encoder_q.")
        run = {"format": 1, "options": options, "git": git_state()}
        checkpoint.save(path, {"epoch": 1, "arch": "resnet18", "state_dict": weights, "moco_run": run})
        result = export(prepare(read_encoder(path)), to, folder / "export")
        return result.verified_by, result.difference

    return run


# In: what the other library makes, or its published layout, and moco.encoders.files reads


def inwards(
    make: Callable[[Path], Made], library: str | None = None, arch: str = "resnet18"
) -> Callable[[Path], tuple[str, float]]:
    @torch.no_grad()
    def run(folder: Path) -> tuple[str, float]:
        images = photographs(Preprocessing(SIZE))
        path, network = make(folder)
        expected = network.eval()(images).flatten(1)
        encoder = build_encoder(arch, 8)
        load_trunk(encoder, read_encoder(path))
        found = trunk(encoder).eval()(images)
        difference = ((found - expected).abs().max() / expected.abs().max().clamp_min(1)).item()
        return (f"{library} {version(library)}" if library else "its published layout"), difference

    return run


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "theirs.pth")
    return folder / "theirs.pth"


def headless(network: nn.Module, name: str = "fc") -> nn.Module:
    network.set_submodule(name, nn.Identity())
    return network


def from_torchvision(folder: Path) -> Made:
    from torchvision import models

    network = randomise(models.resnet18())
    return saved(folder, network.state_dict()), headless(network)


def from_timm(folder: Path) -> Made:
    import timm

    network = randomise(timm.create_model("resnet10t", num_classes=7))
    return saved(folder, {"state_dict": network.state_dict(), "arch": "timm:resnet10t"}), headless(network)


def from_huggingface(folder: Path) -> Made:
    import timm

    network = randomise(timm.create_model("resnet10t", num_classes=7))
    timm.models.save_for_hf(network, str(folder / "hub"), safe_serialization=True)
    return folder / "hub", headless(network)


def from_safetensors(folder: Path) -> Made:
    from safetensors.torch import save_model

    network = resnet18()
    save_model(network, str(folder / "theirs.safetensors"))
    return folder / "theirs.safetensors", trunk(network)


def from_lightly(folder: Path) -> Made:
    """Makes the network of lightly's MoCo example, saved by PyTorch Lightning."""
    import copy

    import pytorch_lightning
    from lightly.models.modules import MoCoProjectionHead
    from torchvision import models

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = randomise(nn.Sequential(*list(models.resnet18().children())[:-1]))
            self.projection_head = MoCoProjectionHead(512, 64, 16)
            self.backbone_momentum = randomise(copy.deepcopy(self.backbone), 1)
            self.projection_head_momentum = copy.deepcopy(self.projection_head)

    module = Module()
    return _lightning_checkpoint(module, folder), module.backbone


def _lightning_checkpoint(module: Any, folder: Path) -> Path:
    import pytorch_lightning

    trainer = pytorch_lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "theirs.ckpt")
    return folder / "theirs.ckpt"


def from_lightly_small(folder: Path) -> Made:
    """Makes lightly's own ResNet for images of 32 pixels.

    lightly's benchmarks use it.
    """
    from lightly.models import ResNetGenerator

    network = ResNetGenerator("resnet-18")
    backbone = randomise(nn.Sequential(*list(network.children())[:-1], nn.AdaptiveAvgPool2d(1)))
    return saved(folder, {"state_dict": prefixed(backbone, "backbone.")}), backbone


def from_solo(cifar: bool) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        method = _solo_moco(cifar)
        encoder = randomise(method.encoder)
        randomise(method.momentum_encoder, 1)
        return saved(folder, {"state_dict": method.state_dict(), "epoch": 3}), encoder

    return make


def _solo_moco(cifar: bool) -> Any:
    # its dependency lightning-bolts cannot be imported beside today's Lightning; it uses only a schedule of it
    with contextlib.suppress(ModuleNotFoundError):
        for name in ("pl_bolts", "pl_bolts.optimizers", "pl_bolts.optimizers.lr_scheduler"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules[name].LinearWarmupCosineAnnealingLR = None  # type: ignore[attr-defined]
    from solo.methods.mocov2plus import MoCoV2Plus

    unused = dict(
        num_classes=5, max_epochs=1, batch_size=2, optimizer="sgd", lars=False, lr=0.1, weight_decay=0.0,
        classifier_lr=0.1, exclude_bias_n_norm=False, accumulate_grad_batches=1, extra_optimizer_args={},
        scheduler="none", min_lr=0.0, warmup_start_lr=0.0, warmup_epochs=0, num_large_crops=2, num_small_crops=0,
        base_tau_momentum=0.99, final_tau_momentum=1.0, momentum_classifier=False,
    )  # fmt: skip
    backbone = {"cifar": cifar, "zero_init_residual": False}
    return MoCoV2Plus(
        encoder="resnet18", backbone_args=backbone, proj_output_dim=16, proj_hidden_dim=32, temperature=0.2,
        queue_size=64, **unused,
    )  # fmt: skip


def from_layout(pack: Callable[[nn.Module, nn.Module], dict[str, Any]]) -> Callable[[Path], Made]:
    """Returns a function that makes a checkpoint in a published layout.

    The checkpoint holds torchvision's network, and another one as its moving average.
    """

    def make(folder: Path) -> Made:
        network = resnet18()
        return saved(folder, pack(network, resnet18(1))), trunk(network)

    return make


def moco(network: nn.Module, follower: nn.Module) -> dict[str, Any]:
    weights = prefixed(network, "module.encoder_q.") | prefixed(follower, "module.encoder_k.")
    weights |= {"module.queue": torch.randn(8, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet18", "state_dict": weights, "optimizer": {}}


def moco_v3(network: nn.Module, follower: nn.Module) -> dict[str, Any]:
    weights = prefixed(network, "module.base_encoder.") | prefixed(follower, "module.momentum_encoder.")
    weights["module.predictor.0.weight"] = torch.randn(4, 4)
    return {"epoch": 100, "arch": "resnet18", "state_dict": weights, "optimizer": {}, "scaler": {}}


def dino(network: nn.Module, follower: nn.Module) -> dict[str, Any]:
    """Returns a checkpoint of DINO, with the network as the teacher.

    DINO evaluates the teacher. The options are an argparse.Namespace.
    """
    head = {"head.last_layer.weight_g": torch.ones(4, 1)}
    teacher = prefixed(trunk(network), "backbone.") | head
    student = prefixed(trunk(follower), "module.backbone.") | {f"module.{key}": value for key, value in head.items()}
    options = argparse.Namespace(arch="resnet18", out_dim=4)
    return {"student": student, "teacher": teacher, "optimizer": {}, "epoch": 100, "args": options}


def byol(network: nn.Module, follower: nn.Module) -> dict[str, Any]:
    """Returns a checkpoint with a prefix that no table lists.

    It holds a moving average too.
    """
    return {"state_dict": prefixed(network, "online_encoder.net.") | prefixed(follower, "target_encoder.net.")}


TRIALS: list[Trial] = [
    *(Trial(to, "out", outwards(to), form.needs) for to, form in FORMATS.items()),
    Trial("MoCo v1, v2, align/uniform fork", "in", inwards(from_layout(moco))),
    Trial("moco-v3", "in", inwards(from_layout(moco_v3))),
    Trial("DINO (ResNet)", "in", inwards(from_layout(dino))),
    Trial("any other prefix", "in", inwards(from_layout(byol))),
    Trial("torchvision", "in", inwards(from_torchvision, "torchvision")),
    Trial("timm", "in", inwards(from_timm, "timm", "timm:resnet10t")),
    Trial("huggingface folder", "in", inwards(from_huggingface, "timm", "timm:resnet10t")),
    Trial("safetensors", "in", inwards(from_safetensors, "safetensors")),
    Trial("lightly", "in", inwards(from_lightly, "lightly"), ("lightly",)),
    Trial("lightly, its ResNet for CIFAR", "in", inwards(from_lightly_small, "lightly"), ("lightly",), "no ReLU"),
    Trial("solo-learn", "in", inwards(from_solo(False), "solo-learn"), ("solo",)),
    Trial("solo-learn, its ResNet for CIFAR", "in", inwards(from_solo(True), "solo-learn"), ("solo",), "pads by 2"),
]


def outcome(trial: Trial) -> str:
    """Runs a trial and returns the last two cells of its row."""
    if missing := trial.missing():
        return f"not verified here: {', '.join(missing)} not installed | –"
    with tempfile.TemporaryDirectory() as folder:
        try:
            verified_by, difference = trial.run(Path(folder))
        except InputError as error:
            if not trial.refused or trial.refused not in str(error):
                raise
            return f"refused: another function ({trial.refused}) | –"
    return f"{verified_by} | {difference:.1e}" if difference else f"{verified_by} | 0"


def table() -> list[str]:
    lines = ["| format | direction | verified by | largest difference |", "|---|---|---|---|"]
    for trial in TRIALS:
        lines.append(f"| {trial.name} | {trial.direction} | {outcome(trial)} |")
        print(lines[-1], file=sys.stderr)
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/interop.md; default: print it")
    write = parser.parse_args(argv).write
    lines = table()
    if write:
        from benchmarks.results_page import put, shortened  # needs matplotlib, which the trials do not

        where = f"commit {shortened(git_state())}, torch {torch.__version__}, Python {platform.python_version()}"
        about = ["", f"Written by `python -m benchmarks.interop --write` at {where}."]
        PAGE.write_text(put(PAGE.read_text(), "interop", [*lines, *about]))
    else:
        print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
