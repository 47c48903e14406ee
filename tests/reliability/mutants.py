"""Takes away each protection in turn, in a copy of the tree, and checks that a test notices.

    python tests/reliability/mutants.py [WORD]     # only those whose line contains WORD

A protection without a test that fails when it is gone may as well not be there. Exit code 1 if a mutant survives.
"""

# ruff: noqa: E501

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

CHECKPOINT, CHECKSUM, SAVER, LOCK = (
    "moco/run/checkpoint.py",
    "moco/run/checksum.py",
    "moco/run/saver.py",
    "moco/run/lock.py",
)
LOGS, PREEMPTION, STEP, HEALTH = (
    "moco/run/log.py",
    "moco/run/preemption.py",
    "moco/pretrain/step.py",
    "moco/pretrain/watch.py",
)
RESUME, DISTRIBUTED, BEGIN = "moco/pretrain/state.py", "moco/distributed/collectives.py", "moco/run/resume.py"
OPTIMISER = "moco/pretrain/optimiser.py"
LOOP, LINE, FILES = "moco/pretrain/loop.py", "moco/pretrain/line.py", "moco/run/files.py"
KILLS = "tests/reliability/test_kills.py"
FP16 = f"{KILLS} -k fp16-0"

# (file, what stands there, what is put in its place, tests of which one must fail)
MUTANTS: list[tuple[str, str, str, str]] = [
    (FILES, "os.fsync(file.fileno())", "pass", "tests/run/test_checkpoint.py"),
    (FILES, "        _sync_folder(path.parent)\n", "", "tests/run/test_checkpoint.py"),
    (FILES, "os.replace(temporary, path)", "path.write_bytes(temporary.read_bytes())", "tests/run/test_checkpoint.py"),
    (FILES, "temporary.unlink(missing_ok=True)", "pass", "tests/run/test_checkpoint.py"),
    (CHECKPOINT, 'map_location="cpu", weights_only=True)', 'map_location="cpu", weights_only=False)', "tests/run/test_checkpoint.py"),
    (CHECKPOINT, '    _check_loadable(state, "state")\n', "", "tests/run/test_checkpoint.py"),
    (CHECKPOINT, "            verify(path)\n", "            pass\n", "tests/run/test_checkpoint.py"),
    (CHECKPOINT, "if (position(path) or after) > after:", "if False:", "tests/run/test_checkpoint.py"),
    (FILES, "        path.unlink(missing_ok=True)\n", "        pass\n", "tests/run/test_checkpoint.py tests/run/test_saver.py"),
    (CHECKSUM, "if _sum_of(file, size - _COMMENT) != comment[len(_TAG) :]:", "if False:", "tests/run/test_checkpoint.py"),
    (CHECKSUM, "    if broken is not None:", "    if False:", "tests/run/test_checkpoint.py"),
    (CHECKSUM, 'if end[:4] != _END_SIGNATURE or end[20:] != b"\\0\\0":', "if False:", "tests/run/test_checkpoint.py"),
    (CHECKSUM, "                self.error = error", "                raise", "tests/run/test_checkpoint.py"),
    (SAVER, "return value.clone(), False", "return value, False", "tests/run/test_saver.py"),
    (SAVER, "        self.wait()\n        copied", "        copied", "tests/run/test_saver.py"),
    (SAVER, "            writing.result()", "            pass", "tests/run/test_saver.py"),
    (SAVER, "if place <= written", "if True", "tests/run/test_saver.py"),
    (SAVER, "        remove_temporaries(self.folder)\n", "", "tests/run/test_saver.py"),
    (LOCK, "started == holder.get(\"started\") else", "True else", "tests/run/test_lock.py"),
    (LOCK, 'return "" if fields[0] in ("Z", "X") else', "return", "tests/run/test_lock.py"),
    (LOCK, "if age > STALE_S else None", "if age > 0 else None", "tests/run/test_lock.py"),
    (LOCK, "if age > STALE_S else None", "if False else None", "tests/run/test_lock.py"),
    (LOCK, "        os.link(source, target)", "        os.replace(source, target)", "tests/run/test_lock.py"),
    (LOCK, 'holder.get("restart") != me["restart"]', "True", "tests/run/test_lock.py"),
    (LOCK, 'if me["job"] and holder.get("job") == me["job"]', "if False", "tests/run/test_lock.py"),
    (LOCK, 'and holder.get("namespace") == me["namespace"]', "", "tests/run/test_lock.py"),
    (LOCK, "                    os.utime(self.path)", "                    pass", "tests/run/test_lock.py"),
    (LOCK, "            if self.held():\n                self.path", "            if True:\n                self.path", "tests/run/test_lock.py"),
    (PREEMPTION, "self.signal = self.signal or number", "self.signal = number", "tests/run/test_preemption.py"),
    (PREEMPTION, "self.signal = self.signal or number", "raise SystemExit(75)", "tests/run/test_preemption.py"),
    (PREEMPTION, "signal.SIG_IGN if self.signal else ", "", "tests/run/test_preemption.py"),
    (LOGS, 'open(self.path, "ab", buffering=0)', 'open(self.path, "ab")', "tests/run/test_log.py"),
    (LOGS, "            file.truncate(whole)", "            pass", "tests/run/test_log.py"),
    (LOGS, "if self._file.write(line) < len(line):", "if self._file.write(line) < 0:", "tests/run/test_log.py"),
    (LOGS, 'write_bytes(self.path, b"".join(kept))', 'self.path.write_bytes(b"")', "tests/run/test_log.py"),
    (LOGS, 'return "NaN" if math.isnan(number) else', "return number if math.isnan(number) else", "tests/run/test_log.py"),
    (OPTIMISER, "self.optimizer.found_inf = bad.float()", "self.unused = bad.float()", "tests/pretrain/test_bad_steps.py"),
    (OPTIMISER, 'if parameter.requires_grad and group.get("momentum"):', "if False:", "tests/pretrain/test_bad_steps.py"),
    (OPTIMISER, "torch.empty_like(parameter, dtype=value.dtype).copy_(value)", "value", "tests/pretrain/test_optimiser.py"),
    (OPTIMISER, "        group.update(asked)", "        pass", "tests/pretrain/test_optimiser.py"),
    (SAVER, "memory_format=torch.preserve_format", "memory_format=torch.contiguous_format", "tests/run/test_saver.py"),
    (OPTIMISER, "self._kept.put_back(bad)", "pass", "tests/pretrain/test_bad_steps.py"),
    (HEALTH, "    if not odd_ranks:\n", "    if True:\n", "tests/pretrain/test_watch.py"),
    (HEALTH, "    if not spread > COLLAPSED:\n", "    if True:\n", "tests/pretrain/test_watch.py"),
    (OPTIMISER, "            self.scaler.load_state_dict(state[\"scaler\"])\n", "            pass\n", FP16),
    (OPTIMISER, "        self.bad_steps.copy_(state[\"bad_steps\"])\n", "", "tests/pretrain/test_state.py tests/reliability/test_numbers.py"),
    (RESUME, '"meters": [meter.state() for meter in meters]', '"meters": [{"sums": {}, "samples": 0} for _ in meters]', KILLS),
    (BEGIN, "log.cut_back(position.global_step)", "log.cut_back(10**9)", KILLS),
    (BEGIN, "checkpoint.set_aside(log.folder, after=(position.epoch, position.step))", "[]", "tests/reliability/test_files.py"),
    (LINE, "self.watch.agreement(self.position, of_ranks)", "pass",
     "tests/reliability/test_ranks.py -k differ"),
    (LOOP, "self.watch.numbers(self.position, self.printed)", "pass", "tests/reliability/test_numbers.py"),
]  # fmt: skip


def survives(mutant: tuple[str, str, str, str], tree: Path) -> bool:
    name, old, new, tests = mutant
    path = tree / name
    original = path.read_text()
    assert old in original, f"{name} has changed: {old!r} is not in it any more"
    path.write_text(original.replace(old, new, 1))
    try:
        words, _, chosen = tests.partition(" -k ")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-o",
            "timeout=600",
            *words.split(),
        ]
        command += ["-k", chosen] if chosen else []
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, cwd=tree, env=env, capture_output=True).returncode
        assert code in (0, 1) or code < 0, f"the tests could not run: {' '.join(command)} ended with {code}"
        return code == 0
    finally:
        path.write_text(original)


def main(word: str = "") -> int:
    chosen = [mutant for mutant in MUTANTS if word in " ".join(mutant)]
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
        for file in filter(None, files):
            target = tree / os.fsdecode(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / os.fsdecode(file)).read_bytes())
        for mutant in chosen:
            survived = survives(mutant, tree)
            alive += survived
            gone = mutant[1].strip().splitlines()[0]
            print(f"{'SURVIVED' if survived else 'found   '}  {mutant[0]}: {gone}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} found")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
