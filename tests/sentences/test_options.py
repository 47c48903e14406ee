"""The flags of python -m moco.sentences.train are frozen, as those of the mains are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from moco.errors import EXIT_OK
from moco.losses.neighbours import NeighbourLoss
from moco.run.flags import build_parser
from moco.sentences.options import SentenceOptions, make_loss, parse_sentences
from moco.sentences.train import main

TABLE = Path(__file__).with_name("cli_flags.txt")


def flags() -> list[str]:
    fields = {f.name: f for f in dataclasses.fields(SentenceOptions)}
    lines = []
    for action in build_parser(SentenceOptions, "")._actions:
        if action.dest != "help":
            names = " ".join(action.option_strings) or action.dest
            lines.append(f"{names} | {action.default!r} | {fields[action.dest].metadata['group']}")
    return lines


def test_flags_are_frozen() -> None:
    """See tests/pretrain/test_options.py: a line that changes or goes breaks somebody's command."""
    frozen = [line for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    assert flags() == frozen


@pytest.mark.parametrize(
    ("words", "loss"),
    [
        ([], NeighbourLoss(1, 0.075, 0, 2, 0, 5)),
        (["--loss", "align-uniform"], NeighbourLoss(0, 0.075, 0.9, 2, 0.1, 5)),
        (["--moco-t", "0.2", "--moco-unif-w", "3", "--moco-unif-t", "2"], NeighbourLoss(1, 0.2, 0, 2, 3, 2)),
        (["--loss", "align-uniform", "--moco-align-alpha", "1"], NeighbourLoss(0, 0.075, 0.9, 1, 0.1, 5)),
    ],
)
def test_presets_and_weights(words: list[str], loss: NeighbourLoss) -> None:
    made = make_loss(parse_sentences(["a.txt", *words]))
    assert dataclasses.replace(made, across=loss.across) == loss


def test_defaults_are_those_of_the_paper() -> None:
    o = parse_sentences(["a.txt", "b.txt"])
    assert o.data == ["a.txt", "b.txt"] and o.output_dir == "runs/sentences-infonce"
    assert (o.batch_size, o.lr, o.epochs, o.grad_clip, o.longest, o.vocabulary_size) == (400, 5e-4, 1, 0.5, 30, 50000)
    assert (o.embedding, o.hidden, o.init) == (620, 600, 0.1)


def test_commands_of_the_page_are_understood() -> None:
    page = (TABLE.parents[2] / "docs" / "sentences.md").read_text()
    commands = re.findall(r"^python -m moco.sentences.train (.+)$", page, re.MULTILINE)
    assert len(commands) == 3
    for words in commands:
        parse_sentences(words.split())


def test_a_file_of_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "o.yaml").write_text("data: [a.txt, b.txt]\nlr: 0.1\nclassify: [MR, CR]\n")
    o = parse_sentences(["--config", str(tmp_path / "o.yaml"), "--lr", "0.2"])
    assert (o.data, o.lr, o.classify) == (["a.txt", "b.txt"], 0.2, ["MR", "CR"])
    assert main(["--config", str(tmp_path / "o.yaml"), "--dry-run"]) == EXIT_OK
    assert '"b.txt"' in capsys.readouterr().out
