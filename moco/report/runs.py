"""Reads runs from disk: one `Encoder` each, with measures or a reason.

A folder is a run of main_moco.py (with log.jsonl, and lincls/lincls.json or depth/depth.json if it was probed) or a
sweep of launch/sweep.py (with sweep.json and elements/). Measures come from the last epoch alone, so numbers of a
half-trained encoder are never shown as those of a trained one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moco.errors import InputError
from moco.losses.table import LOSSES
from moco.metrics.table import LOGGED
from moco.pretrain.watch import COLLAPSED
from moco.run.log import read_log

Records = Sequence[Mapping[str, Any]]

DONE, COLLAPSE, OTHER = "done", "collapsed", "not comparable"
UNFINISHED, FAILED, UNMEASURED = "unfinished", "failed", "not measured"
MEASURED = (DONE, COLLAPSE, OTHER)  # states whose numbers are shown
COMPARED = (DONE, COLLAPSE)  # and those that a correlation may use

PROBE, KNN = "lincls_top1", "knn_top1"
MR, CR = "val_mr_acc1", "val_cr_acc1"  # measures of moco/sentences
DEPTH = "depth_mse"  # measure of moco/probe/depth; an error, so lower is better
ACCURACIES = (PROBE, KNN, MR, CR, DEPTH)
# An option has no effect if the weight of its term is 0
IDLE_WITHOUT = {
    "moco_t": "moco_contr_w",
    "in_batch": "moco_contr_w",
    "moco_align_alpha": "moco_align_w",
    "moco_unif_t": "moco_unif_w",
    "moco_unif_no_intra_batch": "moco_unif_w",
    "unif_global": "moco_unif_w",
}
OF_HEADS = {name for row in LOSSES.values() for name in row.settings.values()} | IDLE_WITHOUT.keys()
# Settings that must be equal for two probes to be comparable
PROBE_SETTINGS = (
    "features_from", "epochs", "batch_size", "optimizer", "lr", "schedule", "lr_drop", "momentum", "adam_betas",
    "weight_decay", "train_fraction", "sweep", "sweep_lrs", "sweep_wds", "held_out", "cached",
)  # fmt: skip
_OF_EARLIER = {"adam_betas": [0.9, 0.999]}  # settings of probes that were trained before there was an option
COLLAPSE_RULE = f"collapsed: uniformity (t = 2) of the validation outputs above {COLLAPSED:g}; 0 is a single point"


@dataclass
class Encoder:
    """Holds one run: a row of the table."""

    name: str
    folder: Path  # of its run
    sweep: str = ""
    state: str = DONE
    why: str = ""  # the reason for the state
    options: dict[str, Any] = field(default_factory=dict)
    records: Records = ()
    measured: dict[str, float] = field(default_factory=dict)  # by key of LOGGED; empty unless state is in MEASURED
    commits: tuple[str, ...] = ()
    probe: str = ""  # settings of its linear probe, as JSON
    published: dict[str, float] = field(default_factory=dict)  # values from a paper, by key of LOGGED

    @property
    def compared(self) -> bool:
        return self.state in COMPARED

    @property
    def trained(self) -> bool:
        return any(record.get("kind") in ("train", "epoch") for record in self.records)

    def option(self, name: str) -> Any:
        """Returns an option's value; None if unset or without effect.

        An option has no effect if the loss does not take it, or the weight of its term is 0.
        """
        value, row = self.options.get(name), LOSSES.get(str(self.options.get("loss")))
        if row is None or name not in OF_HEADS:
            return value
        taken, weight = row.settings.values(), IDLE_WITHOUT.get(name)
        if weight in taken:
            return value if self.options.get(str(weight)) else None
        return value if name in taken else None

    @property
    def temperature(self) -> float | None:
        """Returns the temperature; None if the loss has none or a schedule."""
        value = self.option("moco_t")
        return float(value) if _number(value) else None


def read(folders: Iterable[Path]) -> list[Encoder]:
    """Reads the encoders of all folders, in the order given.

    InputError if a folder is neither a run nor a sweep, a run or a whole sweep has not begun, or names are not unique.
    """
    found: list[Encoder] = []
    for folder in folders:
        found += _sweep(folder) if (folder / "sweep.json").exists() else [_run(folder)]
    if len({one.sweep for one in found if one.sweep}) > 1:
        for one in found:
            one.name = f"{one.sweep}/{one.name}" if one.sweep else one.name
    name, count = Counter(one.name for one in found).most_common(1)[0]
    if count > 1:
        raise InputError(f"{count} runs have the name {name}: give each run once, or rename a folder")
    mark_odd_ones(found)
    return found


def _run(folder: Path) -> Encoder:
    if not (folder / "log.jsonl").is_file():
        raise InputError(f"there is neither a run nor a sweep in {folder}: it holds no log.jsonl and no sweep.json")
    encoder = Encoder(folder.resolve().name, folder, records=read_log(folder / "log.jsonl"))
    options: dict[str, Any] = next((r["options"] for r in encoder.records if isinstance(r.get("options"), dict)), {})
    if not encoder.trained or "pretrained" in options:  # an option of the probes
        raise InputError(f"the log of {folder} holds no training step; give the folder of a run of main_moco.py")
    probe = _folder_of_probe(folder)
    _judge(encoder, probe if probe.exists() else None)
    return encoder


def _folder_of_probe(place: Path) -> Path:
    return place / "depth" if (place / "depth").exists() else place / "lincls"


def _sweep(folder: Path) -> list[Encoder]:
    try:
        described = json.loads((folder / "sweep.json").read_text())
        ids, name = [str(id) for id in described["elements"]], str(described["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'sweep.json'} cannot be read; start the sweep again to rewrite it") from error
    elements = [_element(folder / "elements" / id, id, name) for id in ids]
    if not any(one.trained or one.state == FAILED for one in elements):
        raise InputError(f"no element of the sweep in {folder} has begun; start it with launch/sweep.py")
    return elements


def _element(place: Path, id: str, sweep: str) -> Encoder:
    encoder = Encoder(id, place / "pretrain", sweep)
    if (place / "failed.json").exists():
        encoder.state, encoder.why = FAILED, str(_json(place / "failed.json").get("error", "no reason was written"))
    try:
        encoder.records = read_log(encoder.folder / "log.jsonl")
    except InputError as error:
        if encoder.state != FAILED:
            begun = (encoder.folder / "log.jsonl").exists()
            encoder.state, encoder.why = (FAILED, str(error)) if begun else (UNFINISHED, "has not begun")
    described = _json(place / "element.json")
    figures = described.get("published", {})
    encoder.published = {name: float(value) for name, value in figures.items() if name in LOGGED and _number(value)}
    probed = len(described.get("steps", ())) > 1
    _judge(encoder, _folder_of_probe(place) if probed else None)
    if encoder.state != FAILED and encoder.trained and not (place / "row.json").exists():
        encoder.measured, encoder.state = {}, UNFINISHED
        encoder.why = encoder.why or "the sweep has not finished this element"
    return encoder


def _judge(encoder: Encoder, probe: Path | None) -> None:
    """Sets options, measures and state, from the records and the probe's folder.

    probe: None if the run has no probe.
    """
    starts = [record for record in encoder.records if record.get("kind") == "start"]
    encoder.options = next((dict(s["options"]) for s in reversed(starts) if isinstance(s.get("options"), dict)), {})
    encoder.commits = tuple(dict.fromkeys(str(record.get("git")) for record in starts))
    if encoder.state != DONE:
        return
    epochs = encoder.options.get("epochs")
    if not isinstance(epochs, int):
        encoder.state, encoder.why = UNMEASURED, "its log does not give the number of epochs: another version wrote it"
        return
    done = max((int(r["epoch"]) + 1 for r in encoder.records if r.get("kind") == "epoch"), default=0)
    if done < epochs:
        encoder.state, encoder.why = UNFINISHED, f"{done} of {epochs} epochs"
        return
    last = [r for r in encoder.records if r.get("kind") in ("epoch", "eval") and r.get("epoch") == epochs - 1]
    odd = [LOGGED[name].heading for record in last for name in LOGGED if name in record and not _number(record[name])]
    if odd:
        encoder.state, encoder.why = UNMEASURED, f"its log is damaged: the value of {', '.join(odd)} is no number"
        return
    values = {name: record[name] for record in last for name in LOGGED if name in record}
    if not {"val_alignment", "val_uniformity"} <= values.keys():
        encoder.state, encoder.why = UNMEASURED, "no evaluation after the last epoch (--eval-freq)"
        return
    if probe is not None:
        encoder.why = _probe(encoder, values, probe, epochs)
    if bad := [LOGGED[name].heading for name, value in values.items() if not math.isfinite(value)]:
        encoder.state, encoder.why = UNMEASURED, f"not finite: {', '.join(bad)}"
        return
    encoder.measured = {name: float(value) for name, value in values.items()}
    encoder.state = COLLAPSE if values["val_uniformity"] > COLLAPSED else DONE


def _probe(encoder: Encoder, values: dict[str, Any], probe: Path, epochs: int) -> str:
    """Adds the probe's measures to the values, or returns why not.

    They count only if the probe is of the last checkpoint.
    """
    kind = "depth" if probe.name == "depth" else "linear"
    file, measure = ("depth.json", DEPTH) if kind == "depth" else ("lincls.json", "top1")
    found = _json(probe / file)
    if not _number(found.get(measure)):
        if not probe.exists():
            return "its probe has not begun"
        if not (probe / file).exists():
            return f"its {kind} probe has not ended"
        return f"its {file} is damaged: {measure} is no number"
    if Path(str(found.get("pretrained"))).name != f"checkpoint_{epochs - 1:04d}.pth.tar":
        return f"its {kind} probe is not of the last checkpoint"
    settings = found["options"] if isinstance(found.get("options"), dict) else {}
    if settings.get("finetune"):
        return "its probe also trained the encoder (--finetune), so it is not a linear probe"
    encoder.probe = json.dumps([settings.get(name, _OF_EARLIER.get(name)) for name in PROBE_SETTINGS])
    if kind == "depth":
        values.update({name: found[name] for name in LOGGED if name.startswith("depth_") and _number(found.get(name))})
    else:
        values[PROBE] = found["top1"]
    return ""


def mark_odd_ones(encoders: Sequence[Encoder]) -> None:
    """Marks encoders with another commit, data set or augmentations as OTHER.

    These differ from most encoders. Their numbers are shown but not used. Probes with other settings than most are
    left out.
    """
    measured = [one for one in encoders if one.state in COMPARED]
    for what, values in (
        ("commit", {one.name: one.commits for one in measured}),
        ("data set", {one.name: (one.options.get("dataset"),) for one in measured}),
        ("augmentation", {one.name: (one.options.get("recipe"),) for one in measured}),
    ):
        usual = Counter(values.values()).most_common(1)
        for one in measured:
            if values[one.name] != usual[0][0]:
                shown = " then ".join(str(value)[:12] for value in values[one.name])
                one.why = "; ".join(filter(None, (one.why, f"another {what} than most: {shown}")))
                one.state = OTHER
    for measure, kind in ((PROBE, "linear"), (DEPTH, "depth")):
        probed = [one for one in measured if measure in one.measured]
        usual_probe = Counter(one.probe for one in probed).most_common(1)
        for one in probed:
            if one.probe != usual_probe[0][0]:
                del one.measured[measure]
                one.why = "; ".join(filter(None, (one.why, f"its {kind} probe has other settings than most")))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
