"""Writes the table of docs/reliability.md from what the suite counted: `make reliability`, or `make soak` for hundreds.

MOCO_RELIABILITY_RESULTS=build/reliability.jsonl pytest tests/reliability
python tests/reliability/table.py build/reliability.jsonl
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from datetime import date
from pathlib import Path

from moco.run.provenance import git_state, processor

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- written by tests/reliability/table.py: begin -->", "<!-- end -->"

# fault as the tests count it -> (what it is, how it is injected, what happens)
ROWS: dict[str, tuple[str, str, str]] = {
    "kill": (
        "`kill -9`, 1 or 2 ranks",
        "SIGKILL at a random call, drawn from a seed, of 16 functions: in the step, the loader, the log, the save",
        "`--resume auto` ends bit-identical to the undisturbed run: checkpoint and logged losses",
    ),
    "signal": (
        "SIGTERM, SIGUSR1, SIGUSR2",
        "sent to one rank at a random moment",
        "all ranks save after that step or the next one and exit with 75; the resumed run ends bit-identical",
    ),
    "signal during the save": (
        "more signals during the save",
        "all three, while the checkpoint is taken, synced, renamed",
        "as with one",
    ),
    "torchrun": (
        "`kill -9` of one rank under `torchrun --max-restarts=3`",
        "SIGKILL in the middle of a step",
        "torchrun restarts all ranks; they go on from the last save and end bit-identical",
    ),
    "hang": (
        "a rank hangs",
        "SIGSTOP at a step",
        "after `--rank-timeout` the others exit with 1 and name it; the resumed run ends bit-identical",
    ),
    "rank ends": (
        "a rank ends by itself",
        "`_exit(1)`; a disk that is full on rank 0",
        "the others exit at once and name it",
    ),
    "ranks differ": (
        "weights or queues of ranks differ",
        "one bit of one weight, or of one queue entry, flipped on one rank",
        "exit code 3 at the next printed line, naming the tensor and the last step that agreed; resumable from there",
    ),
    "another world size": (
        "resumed on another number of ranks",
        "1 → 2, 2 → 1, 2 → 3 ranks in mid-epoch",
        "the same samples in the same global batches; what differs is measured below",
    ),
    "not finite": (
        "loss or gradient not finite",
        "gradient overwritten, weight overwritten, learning rate of 1e30",
        "the step is not applied; a repro file is written; exit code 3, or up to `--max-bad-steps` left out",
    ),
    "collapse": (
        "features collapse",
        "a loss of alignment alone",
        "a warning in the log and on the console in the epoch it happens",
    ),
    "full disk": (
        "full disk",
        "no file may grow past 1 kB, from a save or a log line on",
        "exit code 2 and one sentence; earlier checkpoints are whole; the resumed run ends bit-identical",
    ),
    "read-only folder": (
        "folder that cannot be written",
        "at the start; in the middle of the run",
        "exit code 2 and one sentence; resumable once it can be written",
    ),
    "damaged checkpoint": (
        "newest checkpoint damaged",
        "cut short, emptied, one bit flipped, replaced by text",
        "skipped with its reason; the one before it is taken; ends bit-identical",
    ),
    "two runs in one folder": (
        "a second run in one folder",
        "started while the first lives, and after its `kill -9`",
        "refused with the first one's host and process id; not refused after its death",
    ),
    "going back": (
        "resumed from an older checkpoint",
        "`--resume PATH`, killed, `--resume auto`",
        "newer checkpoints are set aside and not found again; ends bit-identical",
    ),
    "odd images": (
        "odd images in the tree",
        "CMYK, grey, palette, 16 bit, 1×1, 12 megapixels, EXIF-rotated, wrongly named; text and hidden files too",
        "trained on, or not counted as images",
    ),
    "bad images": (
        "images that cannot be read",
        "truncated, zero bytes, text named .jpg",
        "exit code 2 naming the file; with `--skip-bad-images` left out and counted",
    ),
    "damaged beton": (
        "damaged .beton file",
        "a byte flipped, the end cut off",
        "found by `python -m moco.data.beton verify` before training",
    ),
}


def table(lines: list[str]) -> str:
    tried: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    drifts = []
    for line in lines:
        record = json.loads(line)
        if "drift" in record:
            drifts.append(record["drift"])
        else:
            tried[record["fault"]] += record["tried"]
            survived[record["fault"]] += record["survived"]
    unknown = set(tried) - set(ROWS)
    assert not unknown, f"the table has no row for {unknown}"
    rows = ["| fault | how it is injected | what happens | tried | survived |", "|---|---|---|---:|---:|"]
    rows += [f"| {' | '.join(ROWS[fault])} | {tried[fault]} | {survived[fault]} |" for fault in ROWS if tried[fault]]
    rows.append(f"| **all** | | | **{tried.total()}** | **{survived.total()}** |")
    where = f"Measured on {date.today()} at commit {git_state()[:12]}, on {os.cpu_count()} cores of {processor()}."
    return "\n".join([where, "", *rows, "", "Drift after a change of world size:", "", *sorted(set(drifts))])


def main(results: str) -> int:
    text = table(Path(results).read_text().splitlines())
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
