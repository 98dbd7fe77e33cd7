"""A real Slurm of one node for tests: all of it in a temporary directory, gone after `stop`.

    cluster = Cluster.start(cpus=2, kill_wait=2)
    subprocess.run(["srun", "hostname"], env={**os.environ, **cluster.env})
    cluster.stop()

Needs root and Debian's slurmctld, slurmd, slurm-client, munge; `Cluster.unavailable()` says what is missing.
Nothing of the system is used or changed: no /etc/slurm, /etc/munge, /run, /etc/hosts, no fixed port.

The daemons are children of a keeper process: this file, run as a script. The keeper is a subreaper, so
whatever a job leaves behind stays its descendant and is found and ended. It lives until its stdin closes, so
the cluster ends and its directory goes even when the test process is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

POLL = 0.05  # seconds between two looks in a wait with a deadline
START_SECONDS = 30.0  # for one daemon to come up
STOP_SECONDS = 5.0  # for one daemon to go after TERM; KILL follows
KEEPER_SECONDS = 60.0  # for the keeper to end everything
CLIENT_SECONDS = 30.0  # for one call of squeue, scontrol, scancel
TEMP_PATH_LIMIT = 40  # characters; the sockets below it must fit into sockaddr_un (108)
PORTS = range(10000, 30000)  # below the range that the kernel hands out by itself
PR_SET_CHILD_SUBREAPER = 36

CLIENTS = ("srun", "sbatch", "salloc", "squeue", "scancel", "scontrol")
DAEMONS = ("munged", "slurmctld", "slurmd")
SBIN = "/usr/sbin:/usr/local/sbin:/sbin"  # not on every PATH

# cred_expire is also how long a requeued job must wait to start again (Slurm's default: 120 s, least: 5 s).
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait={kill_wait}
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1024 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class ClusterError(RuntimeError):
    """The cluster did not come up, or did not go away."""


class Cluster:
    """One running cluster. `env` is what clients need on top of os.environ."""

    def __init__(self, directory: Path, keeper: subprocess.Popen[str]) -> None:
        self.directory = directory
        self.env = _env(directory)
        self.pids: dict[str, int] = {"keeper": keeper.pid}
        self._keeper = keeper

    @staticmethod
    def unavailable() -> str | None:
        """Why there can be no cluster here, or None."""
        if not sys.platform.startswith("linux"):
            return "Slurm runs on Linux only"
        if os.geteuid() != 0:
            return "starting a Slurm needs root"
        missing = [name for name in CLIENTS + DAEMONS if _find(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    @classmethod
    def start(cls, cpus: int, kill_wait: int) -> Cluster:
        """`cpus` may be more than the machine has; `kill_wait`: seconds from TERM to KILL (scancel, time limit)."""
        reason = cls.unavailable()
        if reason is not None:
            raise ClusterError(reason)
        parent = tempfile.gettempdir()
        directory = Path(tempfile.mkdtemp(prefix="slurm-", dir=parent if len(parent) <= TEMP_PATH_LIMIT else "/tmp"))
        cluster = cls(directory, _start_keeper(directory))
        try:
            host = socket.gethostname().partition(".")[0]
            ports = dict(zip(("controller_port", "node_port"), _free_ports(2)))
            cluster._configure(CONF.format(directory=directory, host=host, cpus=cpus, kill_wait=kill_wait, **ports))
            cluster._start_daemons(host)
        except BaseException:
            logs = [path.read_text(errors="replace")[-2000:] for path in directory.glob("*.out")]
            print("the cluster did not come up:", *logs, sep="\n", file=sys.stderr)
            cluster._end_keeper()
            raise
        return cluster

    def stop(self) -> None:
        """Cancel every job, end every process, remove the directory; a second call does nothing."""
        self._end_keeper()
        left = [pid for pid in self.pids.values() if Path(f"/proc/{pid}").exists()]
        if left or self.directory.exists():
            raise ClusterError(f"left behind: processes {left}, directory {self.directory}")

    def client(self, *command: str) -> str:
        """The stdout of a client command (scancel, scontrol, sinfo, ...); raises CalledProcessError."""
        return _client(self.directory, *command)

    def queue(self) -> str:
        """What `squeue -h` says: a line for every job that waits, runs or is being ended."""
        return self.client("squeue", "-h")

    def tasks(self) -> list[int]:
        """The processes of jobs on the node, batch scripts included, and whatever they left behind."""
        return _tasks(self._keeper.pid)

    def wait_empty(self, deadline: float) -> None:
        """Wait, at most so many seconds, until no job is queued and no task runs."""
        end = time.monotonic() + deadline
        while self.queue() or self.tasks():
            if time.monotonic() > end:
                raise TimeoutError(f"queue:\n{self.queue()}tasks: {self.tasks()}")
            time.sleep(POLL)

    def _configure(self, conf: str) -> None:
        # The munge socket is for every user of the machine, as the system's own is; the key is root's alone.
        self.directory.chmod(0o755)
        for name in ("state", "spool"):
            (self.directory / name).mkdir()
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        Path(self.env["SLURM_CONF"]).write_text(conf)

    def _start_daemons(self, host: str) -> None:
        conf, directory = self.env["SLURM_CONF"], self.directory
        munge_socket = directory / "munge.socket"
        munged = ["munged", "-F", "--force", f"--socket={munge_socket}", f"--key-file={directory}/munge.key"]
        munged += [f"--{each}-file={directory}/munged.{each}" for each in ("pid", "seed", "log")]
        self._start_daemon(munged, lambda: _listens(munge_socket))
        self._start_daemon(["slurmctld", "-D", "-f", conf], lambda: "is UP" in self.client("scontrol", "ping"))
        self._start_node(host)

    def _start_node(self, host: str) -> None:
        state, states = ("sinfo", "-h", "--partition=debug", "-o", "%T"), ("idle", "mixed", "allocated")
        command = ["slurmd", "-D", "-N", host, "-f", self.env["SLURM_CONF"]]
        self._start_daemon(command, lambda: self.client(*state).strip() in states)

    def restart_node(self) -> None:
        """Kill the node's daemon with -9 and start it again; what runs on the node lives on."""
        _signal([self.pids["slurmd"]], signal.SIGKILL)
        while Path(f"/proc/{self.pids['slurmd']}").exists():
            time.sleep(POLL)
        self._start_node(socket.gethostname().partition(".")[0])

    def _start_daemon(self, command: list[str], is_up: Callable[[], bool]) -> None:
        name = command[0]
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.write(json.dumps([_find(name), *command[1:]]) + "\n")
        self._keeper.stdin.flush()
        pid = self.pids[name] = int(self._keeper.stdout.readline())
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(subprocess.SubprocessError):
                if is_up():
                    return
            if not Path(f"/proc/{pid}").exists():
                raise ClusterError(f"{name} ended")
            if time.monotonic() > end:
                raise ClusterError(f"{name} was not ready after {START_SECONDS:.0f} s")
            time.sleep(POLL)

    def _end_keeper(self) -> None:
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._keeper.stdin.close()
        self._keeper.wait(KEEPER_SECONDS)
        self._keeper.stdout.close()


def _start_keeper(directory: Path) -> subprocess.Popen[str]:
    """Start this file as the keeper of `directory`, out of reach of a Ctrl+C."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), str(directory)],
        env=_environ(),
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _environ() -> dict[str, str]:
    """This environment without Slurm's variables: the tests may run in a job of another cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")


def _env(directory: Path) -> dict[str, str]:
    return {"SLURM_CONF": str(directory / "slurm.conf")}


def _client(directory: Path, *command: str) -> str:
    return subprocess.run(
        command,
        env={**_environ(), **_env(directory)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=CLIENT_SECONDS,
    ).stdout


def _free_ports(count: int) -> list[int]:
    """Different ports that nothing listens on now."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ClusterError("no free port")


def _listens(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False


def _descendants(ancestor: int) -> list[int]:
    """The living processes below `ancestor`, at any depth."""
    parents: dict[int, int] = {}
    alive: list[int] = []
    for pid in [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may have gone since the listing
            state, parent, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            parents[pid] = int(parent)
            threads = int(rest[15])
            if state not in "ZX" or threads > 1:  # the first thread may end before the others
                alive.append(pid)

    def is_below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == ancestor:
                return True
        return False

    return [pid for pid in alive if is_below(pid)]


def _tasks(keeper: int) -> list[int]:
    """The processes of jobs: all below the keeper but the daemons, which have helpers of the same name."""
    return [pid for pid in _descendants(keeper) if not _program(pid).startswith((*DAEMONS, "slurmstepd"))]


def _program(pid: int) -> str:
    """The name of the program that a process executes; empty if it has gone."""
    with contextlib.suppress(OSError):
        return Path(os.readlink(f"/proc/{pid}/exe")).name
    return ""


def _keep(directory: Path) -> None:
    """The keeper: start the daemons that stdin asks for, answer with their pids; at EOF end everything."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.signal(signal.SIGCHLD, _reap)
    daemons: list[int] = []
    for line in sys.stdin:
        command: list[str] = json.loads(line)
        with (directory / f"{Path(command[0]).name}.out").open("wb") as out:
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        daemons.append(daemon.pid)
        print(daemon.pid, flush=True)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        _end_jobs(directory)
    for pid in reversed(daemons):
        _end(pid)
    while _has_children():  # what is adopted is a child, too
        _signal(_descendants(os.getpid()), signal.SIGKILL)
        time.sleep(POLL)
    shutil.rmtree(directory)


def _end_jobs(directory: Path) -> None:
    """Leave no job, as long as there is a controller that tells the waiting srun of it."""
    _client(directory, "scancel", "--quiet", f"--user={os.getuid()}")
    end = time.monotonic() + STOP_SECONDS
    while _client(directory, "squeue", "-h") and time.monotonic() < end:
        _signal(_tasks(os.getpid()), signal.SIGKILL)
        time.sleep(POLL)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _end(pid: int) -> None:
    """TERM, and wait; the keeper kills what then still runs."""
    end = time.monotonic() + STOP_SECONDS
    _signal([each for each in _descendants(os.getpid()) if each == pid], signal.SIGTERM)
    while pid in _descendants(os.getpid()) and time.monotonic() < end:
        time.sleep(POLL)


def _has_children() -> bool:
    """Whether there is one, be it a zombie that has not been collected."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _reap(*_: object) -> None:
    """Collect every child that has ended, the adopted ones too."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
