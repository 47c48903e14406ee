"""Compares depth predicted from a trained and from an untrained encoder.

    python -m benchmarks.depth_probe FRAMES --output-dir runs/depth-evidence

FRAMES is a folder of pairs NAME.color.jpg and NAME.depth.png, whose names are in order of time.
The first four fifths train encoder and predictor. After a gap of two frames, the last fifth is predicted.
Errors are those after the last epoch, because the best epoch would be chosen on the frames that are measured.
Finished runs are not repeated.
Writes benchmarks/results/depth.json, and the table between its two marks in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.results_page import PAGE, RESULTS, measured_where, put
from moco.commands import run_command
from moco.data.depth import PairFolder
from moco.errors import InputError
from moco.metrics.table import LOGGED
from moco.pretrain.__main__ import main as pretrain
from moco.probe.depth.__main__ import main as depth
from moco.report.runs import read
from moco.run.files import write_json

ARCH, LAYER = "smallcnn", "features.11"  # SmallAlexNet takes thirty times as long
SIZE = 32  # px
TRAINED, UNTRAINED, MEAN = "trained", "untrained", "none: the mean depth of the training frames"
ERRORS = ("depth_mse", "depth_rmse", "depth_abs_rel", "depth_delta1")
GAP = 2  # frames between those that train and those that are measured


def split_by_time(frames: Path, folder: Path) -> tuple[int, int]:
    """Links the pairs into train/ and val/ of `folder`.

    Returns the number of pairs in each.
    """
    pairs = PairFolder(frames).pairs
    first = len(pairs) * 4 // 5
    parts = {"train": pairs[:first], "val": pairs[first + GAP :]}
    for name, part in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path in (path for pair in part for path in pair):
            if not (folder / name / path.name).exists():
                (folder / name / path.name).symlink_to(path.resolve())
    return len(parts["train"]), len(parts["val"])


def trained_encoder(data: Path, out: Path, epochs: int, seed: int) -> Path:
    """Trains an encoder and returns its last checkpoint.

    The loss is .75 alignment + .5 uniformity, the weights of the paper's best encoder on conv5.
    """
    words = f"--dataset nyu-depth -a {ARCH} --image-size {SIZE} --epochs {epochs} -b 25 --lr 0.06 --moco-k 0"
    loss = "--loss align-uniform --moco-align-w 0.75 --moco-unif-w 0.5 --moco-unif-t 2"
    milestones = " ".join(str(round(epochs * at / 400)) for at in (310, 340, 370))
    how = f"--schedule {milestones} --seed {seed} --eval-freq {epochs} --device cpu --resume auto --save-freq {epochs}"
    _done(pretrain([str(data), *f"{words} {loss} {how} --output-dir".split(), str(out)]))
    return out / f"checkpoint_{epochs - 1:04d}.pth.tar"


def predicted(data: Path, out: Path, epochs: int, seed: int, encoder: Path | None) -> dict[str, dict[str, float]]:
    """Returns the errors of the predictor and of the mean depth.

    encoder: its checkpoint; None for an untrained encoder.
    The schedule is the published one, shortened to `epochs`.
    Batches have 16 pairs, so that an epoch has several steps.
    """
    if not (out / "depth.json").exists():
        milestones = " ".join(str(round(epochs * at / 120)) for at in (70, 90, 100, 110))
        how = f"--epochs {epochs} --schedule {milestones} --image-size {SIZE} --seed {seed} --device cpu --resume auto"
        words = f"--features-from {LAYER} -b 16 {how} --output-dir"
        weights = ["--pretrained", str(encoder)] if encoder else ["--arch", ARCH]
        _done(depth([str(data), *words.split(), str(out), *weights]))
    result = json.loads((out / "depth.json").read_text())
    return {"predictor": {name: result[name] for name in ERRORS}, "constant": result["constant"]}


def _done(code: int) -> None:
    if code:
        raise InputError(f"a run ended with exit code {code}: see above")


def table(rows: Mapping[str, Sequence[dict[str, float]]]) -> list[str]:
    """A line for each encoder: mean ± standard deviation over the seeds."""
    lines = [f"| encoder | seeds | {' | '.join(LOGGED[name].heading for name in ERRORS)} |"]
    lines.append("|---|---:|" + "---:|" * len(ERRORS))
    for encoder, found in rows.items():
        cells = []
        for name in ERRORS:
            values, digits = [errors[name] for errors in found], 1 if name == "depth_delta1" else 3
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        lines.append(f"| {encoder} | {len(found)} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("frames", type=Path, help="folder of pairs, named in order of time")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/depth-evidence"))
    parser.add_argument("--epochs", type=int, default=100, help="of pretraining")
    parser.add_argument("--predictor-epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    o = parser.parse_args()
    data = o.output_dir / "frames"
    train, val = split_by_time(o.frames, data)
    rows: dict[str, list[dict[str, float]]] = {TRAINED: [], UNTRAINED: [], MEAN: []}
    runs = [o.output_dir / f"pretrain-{seed}" for seed in range(o.seeds)]
    for seed, run in enumerate(runs):
        encoder = trained_encoder(data, run, o.epochs, seed)
        for kind, weights in ((TRAINED, encoder), (UNTRAINED, None)):
            errors = predicted(data, o.output_dir / f"{kind}-{seed}", o.predictor_epochs, seed, weights)
            rows[kind].append(errors["predictor"])
            rows[MEAN] = [errors["constant"]]
    where = f"{train} frames train, {val} are measured. {measured_where(read(runs))}"
    epochs = {"pretraining": o.epochs, "predictor": o.predictor_epochs}
    setting = {"measured": where, "arch": ARCH, "layer": LAYER, "size": SIZE, "epochs": epochs}
    write_json(RESULTS / "depth.json", {**setting, **rows})
    PAGE.write_text(put(PAGE.read_text(), "depth", [*table(rows), "", where]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
