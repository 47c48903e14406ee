"""Writes, describes and verifies .beton files: `python -m moco.data.beton`.

    python -m moco.data.beton write /data/imagenet imagenet100.beton --subset imagenet100 --max-resolution 400

It writes imagenet100.beton from train/ and imagenet100.val.beton from val/. main_moco.py and main_lincls.py take the
first as their `data` and find the second beside it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from moco.commands import Number, Parser, end_with, run_command
from moco.data.arrays import channels_of_array, is_array
from moco.data.beton.file import JPEG, BetonFile, BetonSource, require_ffcv
from moco.data.beton.writer import MODES, progress_bar, write_beton
from moco.data.channels import MEASUREMENT_SUFFIXES, RGB, PixelFormat, pixel_format
from moco.data.datasets import DATASETS, SPLITS, find_beton, has_split, open_split, subset_classes
from moco.data.decode import BadImage
from moco.data.folder import FolderSource
from moco.data.source import Source, check_same_classes
from moco.data.threads import worker_count
from moco.data.tiff import bands_of_page
from moco.errors import EXIT_OK, InputError

SHOWN = 20


def sources(
    data: str, dataset: str, subset: str | None, split: str | None, out: Path, pixels: PixelFormat = RGB
) -> list[tuple[str, Source, Path]]:
    """Returns (split, source, file) for each file that `write` is to write."""
    if split is not None:
        return [(split, open_split(data, dataset, split, subset=subset, labels_required=False, pixels=pixels), out)]
    there = [name for name in SPLITS if has_split(data, dataset, name)]
    if not there and dataset == "folder":
        images = FolderSource(data, subset=subset_classes(subset), labels_required=False, pixels=pixels)
        return [("images", images, out)]
    found = []
    for name in there or SPLITS:
        path = find_beton(str(out), name)
        assert path is not None
        found.append((name, open_split(data, dataset, name, subset=subset, labels_required=False, pixels=pixels), path))
    if len(found) == len(SPLITS):
        check_same_classes(found[0][1], found[1][1])
    return found


def check_channels(source: Source) -> None:
    """Raises InputError if images have more channels than FFCV's image field.

    It looks at the first TIFF file or array. Of a TIFF file with several pages the first page counts, as in training.
    """
    paths = [path for path in getattr(source, "paths", []) if path.lower().endswith(MEASUREMENT_SUFFIXES)]
    if not paths or not isinstance(source, FolderSource):
        return
    path = source.root / paths[0]
    try:
        data = path.read_bytes()
        channels = channels_of_array(data) if is_array(data) else bands_of_page(data)
    except (OSError, BadImage):  # named with all others when they are read
        return
    if channels not in (1, 3) and (is_array(data) or channels > 4):  # Pillow reads RGB with alpha
        raise InputError(
            f"{path} has {channels} channels, and FFCV's image field holds RGB of 8 bits: train from the folder itself,"
            f" with --channels {channels}"
        )


def write(options: argparse.Namespace) -> int:
    require_ffcv()
    out = Path(options.out)
    if out.suffix != ".beton":
        raise InputError(f"{out} must end in .beton: the trainer recognises such files by it")
    pixels = pixel_format(3, options.value_range)
    todo = sources(options.src, options.dataset, options.subset, options.split, out, pixels)
    for _, _, path in todo:
        if path.exists() and not options.force:
            raise InputError(f"{path} exists: choose another name, or pass --force to replace it")
    for _, source, _ in todo:
        check_channels(source)
    for split, source, path in todo:
        for note in source.notes:
            print(note)
        origin = {
            "source": str(Path(options.src).absolute()),
            "split": split,
            **{key: getattr(options, key) for key in _KEPT},
            "versions": {name: importlib.metadata.version(name) for name in ("ffcv", "numpy", "Pillow")},
        }
        side = write_beton(
            source,
            path,
            mode=options.mode,
            quality=options.quality,
            max_resolution=options.max_resolution,
            proportion=options.proportion,
            workers=worker_count(options.workers),
            skip_bad_images=options.skip_bad_images,
            origin=origin,
        )
        print(
            f"{path}: {len(side.names)} images, {len(side.classes)} classes, {path.stat().st_size / 2**20:.1f} MiB"
            + (f", {len(side.left_out)} left out: {_first(list(side.left_out))}" if side.left_out else "")
        )
    return EXIT_OK


_KEPT = ("dataset", "subset", "mode", "quality", "max_resolution", "proportion", "value_range")


def info(options: argparse.Namespace) -> int:
    file = BetonFile(options.file)
    shown: dict[str, Any] = {
        "file": file.path,
        "size": f"{file.file_bytes / 2**20:.1f} MiB",
        "images": f"{len(file)}, {int((file.mode == JPEG).sum())} of them JPEG, the others raw",
        "height × width": f"{file.height.min()} to {file.height.max()} × {file.width.min()} to {file.width.max()}",
        "labels": f"{len(np.unique(file.labels[file.labels >= 0]))} classes, {int((file.labels < 0).sum())} unlabelled",
    }
    if file.side is None:
        shown["side data"] = "none beside it: no class names, no checksums"
    else:
        shown["classes"] = _first(file.side.classes)
        shown |= file.side.written_from
        shown["left out"] = f"{len(file.side.left_out)} images {_first(list(file.side.left_out))}".strip()
    for key, value in shown.items():
        print(f"{key:>15}  {value}")
    return EXIT_OK


def _first(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def find_damage(path: str | Path, workers: int = 1) -> list[str]:
    """Returns the faults of a .beton file, a line for each.

    It checks every byte. With side data, tables and samples must have their checksums. Without, JPEGs are decoded. The
    padding between pages must be zeros, as FFCV writes it.
    """
    try:
        source = BetonSource(path)
    except InputError as problem:
        return [str(problem)]
    file = source.file

    def look(index: int) -> str | None:
        try:
            if file.side is not None:
                if zlib.crc32(source.read(index).data) != file.side.crc32[index]:
                    raise BadImage("its bytes have changed since they were written")
            else:
                source.open(index).decode()
        except BadImage as problem:
            return f"sample {index} ({source.name(index)}): {problem}"
        return None

    found = []
    with ThreadPoolExecutor(workers) as pool, progress_bar(len(file), f"{file.path.name}: verify") as bar:
        for line in pool.map(look, range(len(file))):
            bar.update()
            if line is not None:
                found.append(line)
    return found + _dirty_padding(file)


def _dirty_padding(file: BetonFile) -> list[str]:
    """Finds bytes between the samples that are not zero."""
    order = np.argsort(file.start)
    starts = np.append(file.start[order], file.table_start)
    ends = np.insert((file.start + file.stored_bytes)[order], 0, file.head_bytes)
    found = []
    with file.path.open("rb") as handle:
        for gap in np.flatnonzero(starts > ends):
            handle.seek(int(ends[gap]))
            data = np.frombuffer(handle.read(int(starts[gap] - ends[gap])), np.uint8)
            if data.any():
                found.append(f"byte {int(ends[gap] + data.argmax())}: padding between samples that is not zero")
    return found


def verify(options: argparse.Namespace) -> int:
    found = find_damage(options.file, worker_count(options.workers))
    for line in found[:SHOWN]:
        print(line)
    if len(found) > SHOWN:
        print(f"and {len(found) - SHOWN} more")
    if found:
        raise InputError(f"{options.file} is damaged ({len(found)} faults): write it again")
    checked = "tables, checksums, padding" if BetonFile(options.file).side else "tables and JPEGs; it has no checksums"
    print(f"{options.file} is whole ({checked})")
    return EXIT_OK


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m moco.data.beton", description=__doc__.split("\n")[0])
    commands = top.add_subparsers(required=True, metavar="write | info | verify")
    one = commands.add_parser("write", help="write .beton files from images", description="Write .beton files.")
    one.set_defaults(run=write)
    one.add_argument(
        "src", metavar="SRC", help="folder with train/ and val/, a folder of images, or a data set's folder"
    )
    one.add_argument("out", metavar="OUT.beton", help="file of the train split; val goes to OUT.val.beton")
    one.add_argument("--dataset", choices=DATASETS, default="folder", help="kind of data in SRC")
    one.add_argument(
        "--subset",
        metavar="FILE",
        help="imagenet100, or a file of class names: write only these classes, labelled in this order",
    )
    one.add_argument("--split", choices=SPLITS, help="write only this split, to OUT.beton itself; default: both")
    one.add_argument("--mode", choices=MODES, default="jpg", help="raw pixels, JPEG, or a share of JPEG")
    one.add_argument("--quality", type=Number(int, 1, 100), default=90, help="quality of the JPEGs, 1 to 100")
    one.add_argument("--proportion", type=Number(float, 0, 1), default=0.5, help="share of JPEGs in mode proportion")
    one.add_argument(
        "--max-resolution", type=Number(int, 1), help="shrink images so that the longer side is at most N pixels"
    )
    one.add_argument(
        "--value-range",
        metavar="LOW,HIGH",
        help="values of more than 8 bits that become black and white; default: each file's own",
    )
    one.add_argument("--skip-bad-images", action="store_true", help="skip images that cannot be read, and count them")
    one.add_argument("--force", action="store_true", help="replace files that exist")
    for name, run, text in (
        ("info", info, "say what is in a file"),
        ("verify", verify, "look for damage, byte by byte"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        command.add_argument("file", metavar="FILE.beton")
    for command in (one, commands.choices["verify"]):
        command.add_argument(
            "-j", "--workers", type=Number(int, 1), help="processes or threads; default: one for each core"
        )
    return top


def main(argv: list[str] | None = None) -> int:
    def run() -> int:
        options = parser().parse_args(argv)
        return options.run(options)

    return run_command(run)


if __name__ == "__main__":
    end_with(main)
