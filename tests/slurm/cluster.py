#!/usr/bin/env python
"""A real Slurm of a few nodes on this machine: munged, slurmctld, and one slurmd for each node, from Debian's packages.

    python tests/slurm/cluster.py start [--nodes 2] [--cpus 4] [--gpus 2]
    eval "$(python tests/slurm/cluster.py env)"       # sbatch, squeue, ... of this shell now talk to it
    python tests/slurm/cluster.py stop

Everything it writes lies in one folder that `stop` removes (but for a line per node in /etc/hosts, taken out as well).
Processes are stopped by the ids noted at their start; step daemons, which outlive a slurmd, by the cluster they name in
their environment. There is no systemd, no cgroup and no accounting: finished jobs stay in slurmctld's memory for an
hour, and `squeue -t all` tells their state. Partitions: `work`, and `low`, whose jobs are preempted by those of `high`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
FOLDER = Path(tempfile.gettempdir()) / "moco-slurm"
HOSTS, MARK = Path("/etc/hosts"), "# moco-slurm"

CONFIGURATION = """
ClusterName=moco
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log

# who may talk to whom. A requeued job waits for its credential to expire: two minutes, were it not said here
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5

# nothing that needs a kernel feature or another daemon
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MinJobAge=3600

# decide quickly; see quickly that a node is gone
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=3
CompleteWait=0
SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=10
ReturnToService=2
JobRequeue=1

# nodes: more processors than the machine has, so that many small ranks fit
SlurmdParameters=config_overrides
GresTypes={gres_types}
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory=16000 {gres}

PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=work Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
"""


class Trouble(RuntimeError):
    """The cluster does not do what it should; the message says what."""


class NotInstalled(Trouble):
    """Slurm is not here and cannot be installed."""


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Looks ten times a second. Trouble if it has not come true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise Trouble(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


def install() -> None:
    """Debian's packages, if they are not there. Trouble names what to do by hand."""
    if os.getuid() != 0:
        raise NotInstalled(
            "this cluster needs root, for the nodes' names in /etc/hosts and for its fake graphics cards"
        )
    # not on every PATH, but where Debian puts daemons
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    if all(shutil.which(name) for name in ("munged", "slurmctld", "slurmd", "sbatch")):
        return
    by_hand = f"install them as root: apt-get install -y {' '.join(PACKAGES)}"
    if shutil.which("apt-get") is None:
        raise NotInstalled(f"Slurm is not installed and there is no apt-get; {by_hand}")
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        try:
            subprocess.run([*quiet, *command], check=True, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            why = getattr(error, "stderr", "") or error
            raise NotInstalled(f"Slurm cannot be installed here; {by_hand} ({why})") from error


class Cluster:
    """`with_parent`: its daemons end when the process that starts it does, however that one ends."""

    def __init__(self, folder: Path = FOLDER, nodes: int = 2, cpus: int = 4, gpus: int = 0, with_parent: bool = False):
        self.folder, self.nodes, self.cpus, self.gpus, self.with_parent = folder, nodes, cpus, gpus, with_parent
        self.configuration = folder / "slurm.conf"
        self._children: list[subprocess.Popen[bytes]] = []

    def environment(self) -> dict[str, str]:
        """What a process needs to talk to this cluster."""
        return {"SLURM_CONF": str(self.configuration), "PATH": os.environ["PATH"]}

    # -- start and stop ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        install()
        if self.configuration.exists():
            raise Trouble(f"{self.folder} already holds a cluster: stop it first")
        for name in ("state", "pids"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munged insists that everyone may reach its socket, in the folders above as well
        try:
            self._write_configuration()
            self._name_nodes()
            self._spawn(
                "munged", "munged", "--foreground", f"--socket={self.folder}/munge.socket",
                f"--key-file={self.folder}/munge.key", f"--pid-file={self.folder}/munged.pid",
                f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munged.seed",
            )  # fmt: skip
            until((self.folder / "munge.socket").exists, 10, "munged opens its socket")
            self._spawn("slurmctld", "slurmctld", "-D", "-i")
            for node in range(1, self.nodes + 1):
                self.start_node(f"n{node}")
            idle = ("sinfo", "-hN", "-tidle", "-o%N", "-pwork")
            until(lambda: self.tell(*idle).split() == self.names(), 60, "all nodes are idle")
        except Trouble as error:
            logs = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
            tails = [f"{log.name}: {log.read_text()[-800:]}" for log in sorted(logs) if log.stat().st_size]
            self.stop()
            raise Trouble("\n".join([str(error), *tails])) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the jobs, then the daemons in reverse order of their start, and removes every trace."""
        with contextlib.suppress(OSError, subprocess.SubprocessError, Trouble):
            cancel = ["scancel", "--user", str(os.getuid())]
            subprocess.run(cancel, env=self._everything(), timeout=10, capture_output=True)
            until(lambda: not self.tell("squeue", "-h", "-trunning,completing", "-o%i"), 20, "jobs end")
        notes = sorted((self.folder / "pids").glob("*"), key=lambda note: note.stat().st_mtime_ns, reverse=True)
        for note in notes:
            end_process(int(note.read_text()))
        for pid in self._strays():
            end_process(pid, signal.SIGKILL)
        for child in self._children:
            child.wait()
        if HOSTS.exists() and MARK in (text := HOSTS.read_text()):
            # written in place: in containers /etc/hosts is a mount that cannot be replaced
            HOSTS.write_text("".join(line for line in text.splitlines(keepends=True) if MARK not in line))
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- nodes -------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return [f"n{node}" for node in range(1, self.nodes + 1)]

    def start_node(self, name: str) -> None:
        self._spawn(f"slurmd.{name}", "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """What a power cut does to a node: its daemon, its steps and all that they started are gone at once."""
        tasks = {pid for pid, its in processes() if its.get("SLURMD_NODENAME") == name and self._mine(its)}
        parents = {parent(pid) for pid in tasks} - {None}
        steps = {pid for pid in parents if pid and command_line(pid).startswith("slurmstepd")}
        daemon = int((self.folder / "pids" / f"slurmd.{name}").read_text())
        for pid in [daemon, *steps, *tasks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for child in self._children:
            if child.pid == daemon:
                child.wait()

    # -- talk to it --------------------------------------------------------------------------------------------------

    def tell(self, *command: str) -> str:
        """The stdout of one of Slurm's commands; empty while slurmctld does not answer."""
        done = subprocess.run(command, env=self._everything(), capture_output=True, text=True, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else ""

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, ... of a job or of one element (`12_3`) of an array."""
        return self.tell("squeue", "-h", "-tall", "-o%T", "-j", job).split("\n")[0]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _everything(self) -> dict[str, str]:
        return {**os.environ, **self.environment()}

    def _mine(self, variables: dict[str, str]) -> bool:
        return variables.get("SLURM_CONF") == str(self.configuration)

    def _strays(self) -> list[int]:
        """Step daemons, and what jobs started, of this cluster and no other."""
        ours = [pid for pid, variables in processes() if self._mine(variables) and pid != os.getpid()]
        return [pid for pid in ours if command_line(pid).startswith("slurmstepd") or "SLURM_JOB_ID" in environment(pid)]

    def _spawn(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            if self.with_parent:
                command = ("setpriv", "--pdeathsig=TERM", *command)
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            process = subprocess.Popen(command, env=self._everything(), start_new_session=True, **streams)
        self._children.append(process)
        (self.folder / "pids" / name).write_text(str(process.pid))

    def _write_configuration(self) -> None:
        port = free_ports(1 + self.nodes)
        first = port + 1
        text = CONFIGURATION.format(
            folder=self.folder, host=socket.gethostname().split(".")[0], user=user(), nodes=self.nodes, cpus=self.cpus,
            port=port, first=first, last=first + self.nodes - 1,
            gres=f"Gres=gpu:fake:{self.gpus}" if self.gpus else "", gres_types="gpu" if self.gpus else "",
        )  # fmt: skip
        if not self.gpus:
            text = text.replace("GresTypes=\n", "")
        else:  # devices that swallow everything; slurmd only wants to see a device file
            for gpu in range(self.gpus):
                os.mknod(self.folder / f"gpu{gpu}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            line = f"Name=gpu Type=fake Flags=nvidia_gpu_env File={self.folder}/gpu[0-{self.gpus - 1}]\n"
            (self.folder / "gres.conf").write_text(line.replace("[0-0]", "0"))
        self.configuration.write_text(text)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))

    def _name_nodes(self) -> None:
        """Ranks meet at the first node's name, so names must resolve."""
        lines = [f"127.0.0.1 {name} {MARK}\n" for name in self.names() if not resolves(name)]
        if lines:
            try:
                with open(HOSTS, "a") as file:
                    file.writelines(lines)
            except OSError as error:
                raise Trouble(f"the nodes' names do not resolve, and {HOSTS} cannot be written: {error}") from error


# -- processes, as /proc tells them ---------------------------------------------------------------------------------


def environment(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def processes() -> Iterator[tuple[int, dict[str, str]]]:
    """(id, environment) of every process that may be looked at."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (variables := environment(int(entry.name))):
            yield int(entry.name), variables


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def free_ports(number: int) -> int:
    """The first of so many neighbouring ports that nobody listens on."""
    for first in range(26817, 32000, number):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + number):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise Trouble("there are no free ports")


def end_process(pid: int, first: signal.Signals = signal.SIGTERM) -> None:
    for number in (first, signal.SIGKILL):
        if alive(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            with contextlib.suppress(Trouble):
                until(lambda: not alive(pid), 15, "")


def resolves(name: str) -> bool:
    try:
        return bool(socket.gethostbyname(name))
    except OSError:
        return False


def user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("start", "stop", "env"))
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=4, help="that each node claims to have (%(default)s)")
    parser.add_argument("--gpus", type=int, default=0, help="fake ones on each node; needs root (%(default)s)")
    arguments = parser.parse_args()
    cluster = Cluster(nodes=arguments.nodes, cpus=arguments.cpus, gpus=arguments.gpus)
    try:
        if arguments.action == "start":
            cluster.start()
            print(cluster.tell("sinfo", "-N", "-l"))
        elif arguments.action == "stop":
            cluster.stop()
        else:
            print(f"export SLURM_CONF={cluster.configuration}")
    except Trouble as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
