"""Whatever takes a job off its nodes, it ends with the weights of a run that nothing happened to, to the bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.slurm.submitted import Submit, Submitted, Trained, trained, wait


def assert_went_on(job: Submitted, undisturbed: Trained, saved: str = "checkpoint_0000_") -> None:
    assert job.end() == "COMPLETED", job.trouble()
    starts = job.events("start")  # a slow machine may reach a time limit more than once
    assert len(starts) >= 2 and starts[0]["saved"] == []
    assert any(saved in start["saved"][1] for start in starts if start["saved"]), starts
    assert trained(job.out).differences(undisturbed) == []


def test_usr2(submit: Submit, undisturbed: Trained) -> None:
    (job,) = submit(["--nodes=2"])
    job.hold()
    job.cluster.tell("scancel", "--signal=USR2", job.id)
    job.wait_for_signal(signal.SIGUSR2)
    job.let_go()
    assert_went_on(job, undisturbed)
    assert len(job.events("requeue")) == 1


def test_time_limit(submit: Submit, undisturbed: Trained) -> None:
    # Slurm looks at the clock every half minute, and may be as early as that: this is 25 to 55 s after the start
    (job,) = submit(["--nodes=2", "--time=2", "--signal-delay=65"])
    job.hold()  # until Slurm's signal, before which it sends SIGCONT
    wait(lambda: job.events("requeue"), 100, job.trouble)
    assert_went_on(job, undisturbed)


def test_preemption_by_a_higher_partition(submit: Submit, undisturbed: Trained) -> None:
    (job,) = submit(["--nodes=2", "--partition=low", "--cpus-per-task=4"])
    job.hold()
    other = job.cluster.tell("sbatch", "--parsable", "-phigh", "-N2", "-n2", "-c4", "-o/dev/null", "--wrap=true")
    wait(lambda: job.cluster.state(other) == "COMPLETED", 100, job.trouble)
    assert_went_on(job, undisturbed)


def test_a_node_that_dies(submit: Submit, undisturbed: Trained) -> None:
    (job,) = submit(["--nodes=2"])
    job.wait_for_step(13)  # beyond the first epoch's checkpoint: nobody can save when the power is gone
    job.pids = job.ranks()
    job.cluster.kill_node("n2")
    wait(lambda: job.state() != "RUNNING", 100, job.trouble)
    job.cluster.start_node("n2")
    assert_went_on(job, undisturbed, "checkpoint_0000.pth.tar")
    assert not job.events("requeue")  # it was Slurm that started it again


def test_a_rank_that_is_killed_ends_the_job_and_a_second_one_goes_on(submit: Submit, undisturbed: Trained) -> None:
    (job,) = submit(["--nodes=2"])
    job.hold(13)
    ranks = job.pids
    job.pids = {1: ranks[1]}
    job.send(signal.SIGKILL)
    job.pids = {0: ranks[0]}
    job.let_go()
    assert job.end() == "FAILED", job.trouble()
    assert job.ranks() == {} and len(job.events("start")) == 1
    (again,) = submit(["--nodes=2"])
    assert again.end() == "COMPLETED", again.trouble()
    assert trained(again.out).differences(undisturbed) == []


def test_a_cancelled_job_stays_cancelled(submit: Submit) -> None:
    (job,) = submit(["--nodes=2"])
    job.wait_for_step()
    job.cluster.tell("scancel", job.id)
    assert job.end() == "CANCELLED", job.trouble()
    wait(lambda: job.ranks() == {}, 30, job.trouble)
    assert job.state() == "CANCELLED" and len(job.events("start")) == 1


def test_restarts_that_save_nothing_come_to_an_end(submit: Submit, tmp_path: Path) -> None:
    """The images never arrive, as from a dead file server: there is no step, after which it could save."""
    images = tmp_path / "images" / "train" / "one"
    images.mkdir(parents=True)
    for i in range(4):
        os.mkfifo(images / f"{i}.jpg")
    words = ["--dataset=folder", str(tmp_path / "images"), "--batch-size=2", "--image-size=32"]
    (job,) = submit(["--stalled-restarts=1"], words)
    for start in (1, 2):
        wait(lambda start=start: len(job.events("start")) == start, 100, job.trouble)
        job.cluster.tell("scontrol", "requeue", job.id)
    assert job.end() == "FAILED", job.trouble()
    assert job.events("end")[-1]["outcome"] == "stalled"
