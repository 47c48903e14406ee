"""Reads a sweep from a YAML file.

Each part is a grid or random draws over options of main_moco.py:

    name: digits
    set: {dataset: digits, arch: smallcnn}          # for every element
    probe: {epochs: 10}                             # options of main_lincls.py, or with dataset: nyu-depth
                                                    # of moco.probe.depth; leave it out for no probe
    parts:
      - set: {loss: infonce}
        grid: {moco_t: [0.07, 0.2], seed: [0, 1]}   # all combinations
      - random:
          count: 20
          seed: 0                                   # of the draws; a larger count leaves the first ones as they are
          draw:
            moco_unif_t: [1, 2, 3]                  # one of these
            lr: {low: 0.03, high: 0.3, log: true}   # or a range
      - encoders: table8.csv                        # a row for each (launch/encoders_table.py); beside this file

A draw that main_moco.py refuses (all weights 0, say) is made again. With `program: sentences` the options are those of
python -m moco.sentences.train, and there is no probe: `classify` is an option of that program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launch import encoders_table, options_file
from moco.errors import InputError
from moco.pretrain.options import PretrainOptions
from moco.probe.depth.options import DepthOptions
from moco.probe.options import LinclsOptions
from moco.run.options import CommonOptions, result_options
from moco.sentences.options import SentenceOptions

Settings = dict[str, Any]
_CONFIG = r"--config \S*moco-sweep-\S+\.yaml: "  # the parser's name for a part of the sweep
IMAGES, SENTENCES = "images", "sentences"  # programs
PATIENCE = 200  # draws in a row that may be refused


@dataclass
class Element:
    """Describes one encoder of a sweep.

    swept: the options in which the elements differ. published: figures of a paper, by the measure's name in logs.
    """

    swept: Settings
    pretrain: PretrainOptions | SentenceOptions
    probe: LinclsOptions | DepthOptions | None
    published: dict[str, float] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """Returns the module of the program that trains it."""
        return "moco.sentences.train" if isinstance(self.pretrain, SentenceOptions) else "main_moco"

    @property
    def id(self) -> str:
        """Returns the id, which is the same for the same results.

        It is made of the options that change results and differ from their defaults.
        """
        kept = {name: value for name, value in _changed(self.pretrain).items() if name != "output_dir"}
        if self.probe:
            kept["probe"] = {name: value for name, value in _changed(self.probe).items() if name != "pretrained"}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


Resolve = Callable[[Settings, str], Element]  # swept options, and the words for where they stand


@dataclass
class Spec:
    name: str
    elements: list[Element]


def read(path: Path, folder: Path | None, words: list[str], ranks: int) -> Spec:
    """Reads the sweep in the file `path`.

    folder: for its elements; default: runs/sweeps/NAME. words: options of main_moco.py for every element. InputError
    for a bad sweep, before anything is started.
    """
    spec, name = _load(path), name_of(path)
    elements: dict[str, Element] = {}
    probe = _section(spec, "probe", str(path)) if "probe" in spec else None
    program = str(spec.get("program", IMAGES))
    if program not in (IMAGES, SENTENCES) or (program == SENTENCES and probe is not None):
        raise InputError(
            f"{path}: `program` must be {IMAGES} or {SENTENCES}, and with {SENTENCES} `probe` must be left out: use"
            " `classify` there"
        )
    for number, part in enumerate(spec["parts"]):
        where = f"{path}, part {number + 1}"
        kinds = {"grid", "random", "encoders"}
        if not isinstance(part, dict) or set(part) - kinds - {"set"} or len(kinds & set(part)) > 1:
            raise InputError(f"{where} must hold `grid`, `random` or `encoders`, and may hold `set`")
        fixed = {**_section(spec, "set", str(path)), **_section(part, "set", where)}
        resolve = functools.partial(_resolve, fixed, probe, words, ranks, program)
        if "encoders" in part:
            _table_elements(elements, path.parent / str(part["encoders"]), resolve, where)
        elif "random" in part:
            _draw_elements(elements, _section(part, "random", where), resolve, where)
        else:
            for swept in _grid(_section(part, "grid", where), where):
                element = resolve(swept, where)
                elements.setdefault(element.id, element)
    out = folder or Path("runs/sweeps") / name
    for element in elements.values():
        place = out / "elements" / element.id
        element.pretrain = dataclasses.replace(element.pretrain, output_dir=str(place / "pretrain"))
        if element.probe:
            last = place / "pretrain" / f"checkpoint_{element.pretrain.epochs - 1:04d}.pth.tar"
            own = place / Path(element.probe.output_dir).name  # lincls or depth
            element.probe = dataclasses.replace(element.probe, output_dir=str(own), pretrained=str(last))
    return Spec(name, _compared(list(elements.values())))


def _compared(elements: list[Element]) -> list[Element]:
    """Sets `swept` to the resolved options in which the elements differ."""
    for name in result_options(type(elements[0].pretrain)):
        values = [getattr(element.pretrain, name) for element in elements]
        if any(value != values[0] for value in values):
            for element, value in zip(elements, values, strict=True):
                element.swept[name] = value
    return elements


def name_of(path: Path) -> str:
    return str(_load(path).get("name") or path.stem)


def _load(path: Path) -> dict[str, Any]:
    try:
        spec = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(f"cannot read the sweep {path}: {why}") from error
    known = {"name", "program", "set", "probe", "parts"}
    if not isinstance(spec, dict) or set(spec) - known or not isinstance(spec.get("parts"), list) or not spec["parts"]:
        raise InputError(
            f"{path} must hold `parts`, a list of one or more, and may hold"
            f" {', '.join(sorted(known - {'parts'}))}; nothing else"
        )
    if not re.fullmatch(r"[\w.-]*\w", str(spec.get("name", "x"))):
        raise InputError(f"{path}: `name` names a folder, so it must be of letters, digits, '-', '_' and '.'")
    return spec


def _section(holder: dict[str, Any], name: str, where: str) -> Settings:
    """Returns the options under `name`; {} if it is missing."""
    found = holder.get(name) or {}
    if not isinstance(found, dict):
        raise InputError(f"{where}: `{name}` must hold options, each with its value, not {found!r}")
    if own := {"output_dir", "resume", "pretrained", "config", "dry_run"} & found.keys():
        raise InputError(f"{where}: a sweep sets {min(own)} itself; take it out of `{name}`")
    return found


def _grid(values: dict[str, list[Any]], where: str) -> Iterator[Settings]:
    for name, choices in values.items():
        if not isinstance(choices, list) or not choices:
            raise InputError(f"{where}: `grid` needs a list of values for {name}, such as [{choices}]")
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _table_elements(elements: dict[str, Element], path: Path, resolve: Resolve, where: str) -> None:
    lines: dict[str, int] = {}
    for row in encoders_table.read(path):
        here = f"{where}, row {row.line} of {path}"
        options = _section({"encoders": row.options}, "encoders", here)
        element = resolve(options, here)
        if element.id in lines:
            raise InputError(f"{here} is the encoder of row {lines[element.id]}: give each a `seed` of its own")
        lines[element.id] = row.line
        elements.setdefault(element.id, element).published.update(row.published)


def _draw_elements(elements: dict[str, Element], wanted: dict[str, Any], resolve: Resolve, where: str) -> None:
    count, draw = wanted.get("count"), _section(wanted, "draw", where)
    if not isinstance(count, int) or count < 1 or not draw:
        raise InputError(f"{where}: `random` must hold a `count` of at least 1, and under `draw` what to draw")
    generator, found, refused = random.Random(int(wanted.get("seed", 0))), 0, 0
    while found < count:
        swept = {name: _draw(generator, choice, f"{where}: {name}") for name, choice in draw.items()}
        try:
            element = resolve(swept, where)
        except InputError:
            element = None
            if refused > PATIENCE:
                raise
        if element is None or element.id in elements:
            if (refused := refused + 1) > 2 * PATIENCE:
                raise InputError(f"{where}: there are fewer than {count} different elements to draw")
            continue
        elements[element.id], found, refused = element, found + 1, 0


def _draw(generator: random.Random, choice: Any, where: str) -> Any:
    if isinstance(choice, list) and choice:
        return generator.choice(choice)
    if not isinstance(choice, dict) or not {"low", "high"} <= set(choice) <= {"low", "high", "log"}:
        raise InputError(f"{where} must be a list, or a range {{low: ..., high: ..., log: true}}")
    low, high, log = choice["low"], choice["high"], choice.get("log")
    if not all(isinstance(end, (int, float)) for end in (low, high)) or low > high or (log and low <= 0):
        raise InputError(f"{where} must be a range of numbers from low to high, with log: true of positive ones")
    if log:
        return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.4g}")
    return float(f"{generator.uniform(low, high):.4g}")


def _resolve(
    fixed: Settings, probe: Settings | None, words: list[str], ranks: int, program: str, swept: Settings, where: str
) -> Element:
    """Makes an element; each part binds all arguments except the last two."""
    try:
        with _as_config({**fixed, **swept}) as config:
            if program == SENTENCES:
                return Element({}, options_file.sentences(config + words, ranks), None)
            pretrain = options_file.pretraining(config + words, ranks)
        classifier = None
        if probe is not None:
            with _as_config(probe) as config:
                classifier = options_file.probe(config, pretrain, ranks)
    except InputError as error:
        raise InputError(f"{where}: {re.sub(_CONFIG, '', str(error))}") from error
    return Element({}, pretrain, classifier)


@contextlib.contextmanager
def _as_config(settings: Settings) -> Iterator[list[str]]:
    """Writes the settings to a --config file, so the same checks apply."""
    with tempfile.NamedTemporaryFile("w", prefix="moco-sweep-", suffix=".yaml") as file:
        yaml.safe_dump(settings, file)
        file.flush()
        yield ["--config", file.name]


def _changed(options: CommonOptions | SentenceOptions) -> Settings:
    """Returns options that change results and differ from their defaults.

    So a new option in a later version changes no id.
    """
    fields = {field.name: field for field in dataclasses.fields(options)}
    changed = {}
    for name in result_options(type(options)):
        field, value = fields[name], getattr(options, name)
        factory = field.default_factory
        default = factory() if factory is not dataclasses.MISSING else field.default
        if value != default:
            changed[name] = value
    return changed
