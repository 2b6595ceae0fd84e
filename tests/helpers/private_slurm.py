"""A Slurm of one node for a test: its own munged, slurmctld and slurmd, with configuration and state in a folder.

Debian: apt-get install slurm-wlm munge. Needs no service manager, and no account but the one that runs the tests.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

SYSTEM = "/usr/sbin:/sbin"  # where daemons lie, which is not in every user's PATH
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")

CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=10
MessageTimeout=60
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in PROGRAMS if not _find(name)]


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM}")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Slurm:
    """`with Slurm(folder) as slurm:` runs it; `slurm.env` is what its clients need."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Slurm":
        self.folder.mkdir(mode=0o755)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller, node = _free_ports(2)
        text = CONFIGURATION.format(folder=self.folder, controller=controller, node=node, user=getpass.getuser())
        (self.folder / "slurm.conf").write_text(text)
        places = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{option}={self.folder}/munge.{end}" for option, end in places.items()]
        try:
            self._start("munged", "--foreground", "--force", *munge)
            self._wait(lambda: (self.folder / "munge.socket").exists(), "munged listens")
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D", "-N", "localhost")
            self._wait(lambda: self.ask("sinfo", "--noheader", "--format=%T").strip() == "idle", "the node is idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if len(self._daemons) == 3:  # jobs of a failing test would outlive the daemons
            self.ask("scancel", f"--user={getpass.getuser()}")
            with contextlib.suppress(AssertionError):
                self._wait(lambda: not self.ask("squeue", "--noheader").strip(), "all jobs have ended", 30)
        for daemon in reversed(self._daemons):
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()

    def ask(self, *command: str) -> str:
        """Standard output of a client."""
        done = subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout

    def wait_for_end(self, job: str, seconds: float = 400) -> str:
        """The last state of a job, or of all elements of an array, once nothing of it waits or runs."""
        going = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"}
        states: set[str] = set()

        def ended() -> bool:
            words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
            states.clear()
            states.update(word.partition("=")[2] for word in words if word.startswith("JobState="))
            return bool(states) and not states & going

        self._wait(ended, f"job {job} ended", seconds)
        return " ".join(sorted(states))

    def _start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.out").open("w") as output:
            self._daemons.append(
                subprocess.Popen(
                    [_find(name), *arguments],
                    env={**os.environ, **self.env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _wait(self, condition, what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
                logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.out"))
                raise AssertionError(f"waited in vain until {what}\n{logs}")
            time.sleep(0.2)
