#!/usr/bin/env python
"""Submits pretraining, and with --then-lincls the linear probe after it, to Slurm.

    python -m launch.submitit_job --gpus-per-node 8 -- --config launch/recipes/moco_v2.yaml /data/imagenet
    python -m launch.submitit_job --nodes 2 --gpus-per-node 8 --then-lincls -- [main_moco.py's] -- [main_lincls.py's]
    python -m launch.submitit_job --cluster local --tasks-per-node 2 -- --dataset digits -a smallcnn --epochs 4

Each task of the job is a rank. The code, the commit and the resolved options are copied to OUTPUT_DIR/jobs/TIME/, and
the job runs from there. Before its time limit, and when it is preempted, the job saves, is requeued and goes on where
it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from launch import jobs, options_file, snapshot
from launch.job import Job, JobFailed, Step
from moco.commands import Number, Parser, end_with, run_command
from moco.errors import EXIT_INPUT, EXIT_OK, InputError
from moco.run.files import write_text
from moco.run.provenance import git_state

# submitit ends a job after this many time limits; here only restarts that save nothing end it
AS_OFTEN_AS_NEEDED = 10**6


def build_parser(description: str) -> argparse.ArgumentParser:
    parser = Parser(description=description, allow_abbrev=False)
    add = parser.add_argument
    where = "local: on this machine, without Slurm; debug: in this process"
    add("--cluster", choices=("slurm", "local", "debug"), default="slurm", help=where)
    add("--dry-run", action="store_true", help="print the batch script and the resolved options; submit nothing")
    add("--nodes", type=Number(int, 1), default=1, help="number of nodes")
    add("--gpus-per-node", type=Number(int, 0), default=0, help="GPUs of each node; 0: the ranks train on CPUs")
    add("--tasks-per-node", type=Number(int, 1), help="ranks on each node; default: one for each GPU, else one")
    add("--cpus-per-task", type=Number(int, 1), help="CPUs of each rank: its decoding threads")
    limit = "time limit of one start; the job is requeued as often as needed"
    add("--time", type=Number(int, 1), default=1440, metavar="MINUTES", help=limit)
    delay = "time before the limit at which the job saves and is requeued"
    add("--signal-delay", type=Number(int, 0), default=120, metavar="SECONDS", help=delay)
    add("--mem-gb", type=Number(float, 0.001, 1e6), help="memory of each node in GB")
    for name in ("partition", "account", "qos", "constraint", "exclude", "nodelist", "dependency"):
        add(f"--{name}", help=f"sbatch's --{name}")
    other = "another option of sbatch; may be repeated"
    add("--sbatch", action="append", default=[], metavar="NAME=VALUE", help=other)
    setup = "shell line to run before the ranks start; may be repeated"
    add("--setup", action="append", default=[], metavar="COMMAND", help=setup)
    add("--name", help="name of the job; default: that of the output folder")
    stalled = "give up after so many restarts in a row that saved nothing"
    add("--stalled-restarts", type=Number(int, 0), default=5, help=stalled)
    add("--index", type=Path, default=jobs.INDEX, help="file that lists the submitted jobs, for launch.jobs")
    return parser


def check(o: argparse.Namespace) -> None:
    """Raises InputError if options do not fit together."""
    if o.signal_delay >= 60 * o.time:
        raise InputError(f"--signal-delay {o.signal_delay} s must be shorter than --time {o.time} min; make it smaller")
    for word in o.sbatch:
        if not re.fullmatch(r"-{0,2}[a-z][\w-]*(=.*)?", word, re.DOTALL):
            raise InputError(f"--sbatch {word} must have the form NAME=VALUE")
    if o.name is not None and not o.name.strip():
        raise InputError("--name must not be empty; leave it out to use the name of the output folder")


def slurm_parameters(o: argparse.Namespace, name: str) -> dict[str, Any]:
    """Makes submitit's parameters; this project's own override a site's options."""
    tasks = tasks_per_node(o)
    srun = ["--kill-on-bad-exit=1", "--wait=0"]  # a lost rank ends all; a finished one lets the others finish
    if o.cpus_per_task:
        srun.append(f"--cpus-per-task={o.cpus_per_task}")  # srun no longer inherits it from sbatch (Slurm 22.05)
    wishes = {
        "gpus_per_node": o.gpus_per_node or None,
        "cpus_per_task": o.cpus_per_task,
        "mem": f"{int(o.mem_gb * 1024)}MB" if o.mem_gb else None,
        **{
            key: getattr(o, key)
            for key in ("partition", "account", "qos", "constraint", "exclude", "nodelist", "dependency")
        },
    }
    extra: dict[str, Any] = dict(word.lstrip("-").partition("=")[::2] for word in o.sbatch)
    return {
        **{key: value for key, value in wishes.items() if value is not None},
        "job_name": name,
        "nodes": o.nodes,
        "ntasks_per_node": tasks,
        "time": o.time,
        "signal_delay_s": o.signal_delay,
        "stderr_to_stdout": True,
        "srun_args": srun,
        "setup": o.setup or None,
        "additional_parameters": {key: value or True for key, value in extra.items()} | {"requeue": True},
    }


def tasks_per_node(o: argparse.Namespace) -> int:
    return o.tasks_per_node or o.gpus_per_node or 1


def executor(o: argparse.Namespace, folder: Path, code: Path, name: str, **more: Any) -> submitit.Executor:
    """Makes submitit's executor. `folder` may hold %j, or %A for an array."""
    if o.cluster == "local":
        if o.nodes > 1:
            raise InputError("--cluster local is this machine alone: pass --nodes 1 and more --tasks-per-node")
        local = submitit.LocalExecutor(folder, max_num_timeout=AS_OFTEN_AS_NEEDED, python=snapshot.rank_python(code))
        local.update_parameters(
            timeout_min=o.time,
            tasks_per_node=tasks_per_node(o),
            gpus_per_node=o.gpus_per_node,
            signal_delay_s=o.signal_delay,
            stderr_to_stdout=True,
        )
        return local
    try:
        slurm = submitit.SlurmExecutor(folder, max_num_timeout=AS_OFTEN_AS_NEEDED, python=snapshot.rank_python(code))
    except RuntimeError as error:
        raise InputError(
            "there is no srun here: submit from a login node of the cluster, or pass --cluster local"
        ) from error
    slurm.update_parameters(**{**slurm_parameters(o, name), **more})
    return slurm


def fresh_folder(parent: Path) -> Path:
    """Makes a new folder: submitit would trust an old job's files."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        folder = parent / (stamp if attempt == 0 else f"{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise InputError(f"cannot make a folder for the job in {parent}: remove old ones there")


def submit(o: argparse.Namespace, pretrain_argv: list[str], probe_argv: list[str]) -> list[str]:
    """Submits the jobs; returns their ids."""
    if o.cluster == "debug" and o.nodes * tasks_per_node(o) > 1:
        raise InputError("--cluster debug is one process: leave out --nodes, --tasks-per-node and --gpus-per-node")
    ranks = o.nodes * tasks_per_node(o)
    pretrain = options_file.pretraining(pretrain_argv, ranks)
    if pretrain.dry_run:
        raise InputError("--dry-run belongs before the --: it prints the batch script and the resolved options")
    probe = options_file.probe(probe_argv, pretrain, ranks) if o.then_lincls else None
    out = Path(pretrain.output_dir).absolute()
    name = o.name or out.name
    if o.dry_run:
        folder = out / "jobs" / "TIME"
        rank = snapshot.rank_python(folder / "code")
        command = f"{rank} -u -m submitit.core._submit {shlex.quote(str(folder / '%j'))}"
        print(_make_sbatch_string(command=command, folder=folder / "%j", **slurm_parameters(o, name)))
        print(options_file.as_text(pretrain))
        return []

    folder = fresh_folder(out / "jobs")
    code = snapshot.take(folder / "code")
    steps = [options_file.write("main_moco", pretrain, folder / "main_moco.yaml")]
    if probe:
        main = options_file.main_of_probe(probe)
        steps.append(options_file.write(main, probe, folder / f"{main}.yaml"))
    description = {"command": [sys.executable, *sys.argv], "git": git_state(), "ranks": ranks, "submission": vars(o)}
    write_text(folder / "job.json", json.dumps(description, indent=2, default=str) + "\n")
    if o.cluster == "debug":
        Job(steps, folder)()
        return []

    # Slurm chains jobs; on one machine the probe is the second step of the one job
    ids: list[str] = []
    for part in [[step] for step in steps] if o.cluster == "slurm" else [steps]:
        title = name if part[0].main == "main_moco" else f"{name}-{Path(part[0].output_dir).name}"
        run = executor(o, folder / "%j", code, title)
        if ids:
            after = run.parameters["additional_parameters"] | {"kill-on-invalid-dep": "yes"}
            run.update_parameters(dependency=f"afterok:{ids[-1]}", additional_parameters=after)
        (job,) = hand_over(run, [Job(part, folder, o.stalled_restarts)])
        ids.append(job.job_id)
        announce(o, job, title, part[-1], folder)
        if o.cluster == "local":
            job.wait()
            if (state := jobs.noted_state({"job_folder": folder, "id": job.job_id})) != "COMPLETED":
                raise JobFailed(f"job {job.job_id} is {state}; see {jobs.shown(str(job.paths.stdout))}")
    return ids


def hand_over(run: submitit.Executor, calls: list[Job]) -> list[submitit.Job[Any]]:
    """Submits one job, or an array of several."""
    inside_a_job = "SLURM_JOB_ID" in os.environ
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        # the running job's variables would become defaults of the new one
        with submitit.helpers.clean_env() if inside_a_job else contextlib.nullcontext():
            os.environ.update(kept)
            if len(calls) == 1:
                return [run.submit(calls[0])]
            with run.batch():
                return [run.submit(call) for call in calls]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise InputError(f"Slurm refused the job: {' '.join(str(error).split())}") from error


def announce(o: argparse.Namespace, job: submitit.Job[Any], name: str, step: Step, folder: Path) -> None:
    entry = {"id": job.job_id, "cluster": o.cluster, "name": name, "folder": step.output_dir, "job_folder": str(folder)}
    jobs.add(o.index, entry)
    log = jobs.shown(str(job.paths.stdout))
    print(f"job {job.job_id}  {name}\n  output  {jobs.shown(step.output_dir)}\n  log     {log}", flush=True)


def split_at_dashes(argv: list[str]) -> list[list[str]]:
    """Splits arguments at the first two `--` into three lists."""
    parts: list[list[str]] = [[]]
    for word in argv:
        if word == "--" and len(parts) < 3:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts + [[]] * (3 - len(parts))


def main(argv: list[str] | None = None) -> int:
    mine, pretrain_argv, probe_argv = split_at_dashes(sys.argv[1:] if argv is None else argv)
    parser = build_parser((__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--then-lincls", action="store_true", help="the linear probe as a second job, after the first ends well"
    )

    def run() -> int:
        o = parser.parse_args(mine)
        check(o)
        if probe_argv and not o.then_lincls:
            raise InputError("options of main_lincls.py are given, but not --then-lincls")
        try:
            submit(o, pretrain_argv, probe_argv)
        except JobFailed as error:
            if error.code != EXIT_INPUT:  # otherwise the main has printed the error
                print(f"error: {error}", file=sys.stderr)
            return error.code
        return EXIT_OK

    return run_command(run)


if __name__ == "__main__":
    end_with(main)
