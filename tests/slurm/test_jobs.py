"""launch/submitit_job.py on two nodes: ranks meet, train what torchrun trains, and the probe follows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.slurm.submitted import Submit, Trained, torchrun, trained


def test_two_nodes_train_what_one_machine_trains(submit: Submit, undisturbed: Trained) -> None:
    (job,) = submit(["--nodes=2"])
    assert job.end() == "COMPLETED", job.trouble()
    assert trained(job.out).differences(undisturbed) == []
    ranks = re.findall(r"rank (\d) of 2: process \d+ on (n\d)", job.log.read_text())
    assert ranks == [("0", "n1")]
    other = re.findall(r"rank (\d) of 2: process \d+ on (n\d)", job.log.with_name(f"{job.id}_1_log.out").read_text())
    assert other == [("1", "n2")]


def test_two_by_two_ranks_have_a_device_each(submit: Submit, tmp_path: Path) -> None:
    (job,) = submit(["--nodes=2", "--tasks-per-node=2", "--gpus-per-node=2"], ["--device=cpu"])
    assert job.end() == "COMPLETED", job.trouble()
    assert trained(job.out).differences(torchrun(tmp_path / "torchrun", 4)) == []
    logs = "".join(path.read_text() for path in job.log.parent.glob("*_log.out"))
    found = re.findall(r"rank (\d) of 4: process \d+ on (n\d), device (\S+),", logs)
    assert sorted(found) == [("0", "n1", "0"), ("1", "n1", "1"), ("2", "n2", "0"), ("3", "n2", "1")]


def test_eight_ranks(submit: Submit) -> None:
    (job,) = submit(["--nodes=2", "--tasks-per-node=4"], ["--epochs=1"])
    assert job.end() == "COMPLETED", job.trouble()
    assert len(job.records()) == 11
    assert '"world_size": 8' in (job.out / "log.jsonl").read_text()


def test_the_probe_follows_when_pretraining_ends_well(submit: Submit) -> None:
    pretrain, probe = submit(["--nodes=2", "--then-lincls"], None, ["--epochs=2", "--lr=1"])
    assert probe.state() == "PENDING"
    assert probe.end() == "COMPLETED", probe.trouble()
    assert pretrain.state() == "COMPLETED"
    result = json.loads((pretrain.out / "lincls" / "lincls.json").read_text())
    assert result["pretrained"] == str(pretrain.out / "checkpoint_0001.pth.tar")
    assert result["top1"] > 20  # of ten digits; the untrained start is at 10


def test_the_probe_is_cancelled_when_pretraining_fails(submit: Submit) -> None:
    pretrain, probe = submit(["--then-lincls"], ["--dataset=folder", "/there/is/no/such/folder"], ["--epochs=2"])
    assert pretrain.end() == "FAILED", pretrain.trouble()
    assert "error: " in pretrain.log.read_text()
    assert probe.end() == "CANCELLED"
    assert len(pretrain.events("start")) == 1


def test_the_job_keeps_its_code_commit_and_options(submit: Submit) -> None:
    (job,) = submit(["--dependency=afterok:999999"])  # never runs
    (folder,) = (job.out / "jobs").iterdir()
    job.cluster.tell("scancel", job.id)
    commit = (folder / "code" / ".commit").read_text().strip()
    assert json.loads((folder / "job.json").read_text())["git"] == commit
    assert (folder / "code" / "main_moco.py").exists()
    assert f"output_dir: {job.out}" in (folder / "main_moco.yaml").read_text()
    assert str(folder / "code") in (folder / job.id / f"{job.id}_submission.sh").read_text()


@pytest.mark.parametrize("words", [["--moco-t=-1"], ["--no-such-option"]])
def test_bad_options_never_reach_the_queue(submit: Submit, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(AssertionError, match="error: "):
        submit([], words)
    assert not (tmp_path / "run").exists()
