"""Every example runs and does what it says; the package's face is what the examples use."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

import moco
from moco.run import checkpoint

ROOT = Path(__file__).resolve().parent.parent


def example(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_own_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["own_loop.py", "40"])
    with torch.random.fork_rng():
        example("own_loop")
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert losses[-1] < losses[0] - 0.5  # 6.2 is chance with a queue of 512


def test_own_loop_has_thirty_lines() -> None:
    """Statements and their continuations, from the first one after the imports on."""
    tree = ast.parse((ROOT / "examples" / "own_loop.py").read_text())
    last_import = max(node.lineno for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    lines = (ROOT / "examples" / "own_loop.py").read_text().splitlines()[last_import:]
    assert len([line for line in lines if line.strip()]) <= 30


@pytest.mark.parametrize("name", ["own_dataset", "own_loss"])
def test_parts_from_outside_have_thirty_lines(name: str) -> None:
    """tests/pretrain/test_plugins.py trains with them."""
    tree = ast.parse((ROOT / "examples" / f"{name}.py").read_text())
    docstring = tree.body[0].end_lineno
    lines = (ROOT / "examples" / f"{name}.py").read_text().splitlines()[docstring:]
    assert len([line for line in lines if line.strip()]) < 30


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_lightning_user() -> None:
    pytest.importorskip("lightning")
    with torch.random.fork_rng():
        module = example("lightning_user").main(steps=3)
    assert int(module.model.filled) == 3 * 64
    assert int(module.model.queue_ptr) == 3 * 64
    q, k = module.model.encoder_q.fc.weight, module.model.encoder_k.fc.weight
    assert not torch.equal(q, k) and torch.allclose(q, k, atol=0.1)


def test_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = {f"module.encoder_q.{k}": v for k, v in moco.encoders.build_encoder("smallcnn", 8).state_dict().items()}
    run = {"options": {"recipe": "digits", "image_size": 32}}
    checkpoint.save(tmp_path / "file", {"epoch": 1, "arch": "smallcnn", "state_dict": weights, "moco_run": run})
    with torch.random.fork_rng():
        accuracy = example("fine_tuning").main([str(tmp_path / "file"), "--labels", "10", "--steps", "50"])
    assert accuracy > 30  # of ten classes, from random weights
    assert "355 scans" in capsys.readouterr().out


def test_circle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng():
        encoders = example("circle").main(["--output", str(tmp_path / "circle.png"), "--epochs", "1"])
    assert [one.name for one in encoders] == ["untrained", "supervised", "contrastive"]
    assert all(torch.allclose(x.norm(dim=1), torch.ones(355)) for one in encoders for x in (one.x, one.q, one.k))
    assert moco.metrics.uniformity(encoders[1].x) < moco.metrics.uniformity(encoders[0].x) - 0.1  # it has spread out
    assert "supervised   alignment" in capsys.readouterr().out
    with Image.open(tmp_path / "circle.png") as picture:
        assert picture.width > 1000


# retrieval.py and sample_photos.py are run by tests/test_docs.py


# by tests/test_quickstart.py, tests/pretrain/test_plugins.py and tests/pretrain/test_channels.py
RUN_ELSEWHERE = ("quickstart", "own_dataset", "own_loss", "other_channels")


def test_every_example_is_run() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    for path in (ROOT / "examples").glob("*.py"):
        run_here = f'example("{path.stem}")' in tests or path.stem in RUN_ELSEWHERE
        assert run_here or f"python examples/{path.name}" in tutorial


def test_the_face_is_light() -> None:
    """`import moco` alone brings no timm, torchvision or scikit-learn; what is asked for comes then."""
    script = (
        "import sys, moco\n"
        "assert not {'timm', 'torchvision', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
        "assert moco.MoCo.__module__ == 'moco.builder'\n"
        "assert moco.losses.contrastive_loss and moco.metrics.uniformity and moco.encoders.trunk\n"
        "import torchvision\n"
        "try:\n    moco.nothing\nexcept AttributeError as error:\n    assert 'nothing' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
