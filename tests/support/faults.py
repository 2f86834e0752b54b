"""Real faults in a search of several processes, and the invariants that must hold afterwards."""

import os
import random
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import children
import faulty
import networks
import servers
from optuna.trial import TrialState
from sqlalchemy import create_engine, make_url, text

import automl.cli
from automl.analysis.doctor import Doctor
from automl.plugin.report import State
from automl.storage.storage import Storage
from automl.study.study import open_study

FILE = str(Path(faulty.__file__))
TRIALS = 16
LEASE = 2.0
_SECONDS = 90.0
_PARTS = (
    *("--task", f"{FILE}:Nothing", "--trainer", f"{FILE}:Steps", "--strategy", "random"),
    # There is nothing to probe.
    *("-o", "cache.levels=L0,L1"),
)


@dataclass
class Scene:
    """A running study: a search and further workers, each in its own process.

    Attributes:
        url: The database.
        directory: The folder of logs and state.
        draw: Draws the moments and parameters of faults.
        cluster: The scene's own PostgreSQL server, if it has one.
        environment: Further environment variables of the processes.
        gives_back: Whether a worker may release its trial, which another then continues.
        processes: The processes started so far.
    """

    url: str
    directory: Path
    draw: random.Random
    cluster: "servers.Cluster | None" = None
    environment: dict[str, str] = field(default_factory=dict)
    gives_back: bool = False
    processes: "list[children.Process]" = field(default_factory=list)

    def start(
        self, *arguments: str, skew: float = 0.0, url: str | None = None, network: str = ""
    ) -> children.Process:
        environment = {
            "AUTOML_STORAGE": url or self.url,
            "AUTOML_STATE_DIR": str(self.directory / "state"),
            "AUTOML_LEASE_SECONDS": str(LEASE),
            faulty.LOG: str(self.log),
            **self.environment,
        }
        log = self.directory / f"process-{len(self.processes)}.log"
        process = children.started(_command, environment, arguments, skew, str(log), network)
        self.processes.append(process)
        return process

    def search(self, *more: str, **rest: object) -> children.Process:
        limits = ("--trials", str(TRIALS), "--study", "s", "--seed", str(self.draw.randrange(99)))
        return self.start("search", f"{FILE}:grid", *_PARTS, *limits, *more, **rest)

    def worker(self, **rest: object) -> children.Process:
        """Start another worker once the study is running; return once that worker trains."""
        self.wait_for_steps(1)
        process, log = self.start("worker", "s", "--plugin", FILE, **rest), self.log
        self.wait(lambda: f" {process.pid}\n" in log.read_text() or not process.is_alive())
        return process

    @property
    def log(self) -> Path:
        return faulty.log_file(self.directory)

    def wait_for_steps(self, number: int) -> None:
        """Wait until trials have made this many steps, or no process is left."""
        log = self.log
        self.wait(lambda: log.exists() and len(log.read_text().splitlines()) >= number)

    def wait(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + _SECONDS
        while not condition() and any(process.is_alive() for process in self.processes):
            if time.monotonic() > end:
                raise TimeoutError(f"waited in vain: {self.output()}")
            time.sleep(0.02)

    def end(self) -> None:
        """Wait until all processes end, then resume the study to finish the remaining trials."""
        for process in self.processes:
            process.join(_SECONDS)
            if process.is_alive():
                raise TimeoutError(f"a process does not end: {self.output()}")
        self.environment.clear()
        last = self.start("resume", "s", "--plugin", FILE)
        last.join(_SECONDS)
        assert last.exitcode == 0, self.output()

    def kill(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()

    def output(self) -> str:
        logs = sorted(self.directory.glob("process-*.log"))
        return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in logs)


def _command(arguments: tuple[str, ...], skew: float, log: str, network: str) -> None:
    """Run the command line, with a clock that may be wrong and a network that may be separate."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if network:
        networks.enter(network)
    real = time.time
    if skew:
        time.time = lambda: real() + skew
    automl.cli.main(list(arguments))


# Faults: each is injected at a moment that the scene's generator draws.
def kill_one(scene: Scene) -> None:
    scene.search()
    workers = [scene.worker() for _ in range(2)]
    _at_a_moment(scene)
    _signal(scene.draw.choice([*workers, scene.processes[0]]), signal.SIGKILL)


def kill_all(scene: Scene) -> None:
    scene.search()
    scene.worker()
    _at_a_moment(scene)
    scene.kill()


def preempt(scene: Scene) -> None:
    """SIGTERM, as Slurm sends before it kills; a released trial continues as the same attempt."""
    scene.gives_back = True
    scene.search()
    worker = scene.worker()
    _at_a_moment(scene)
    _signal(worker, signal.SIGTERM)


def freeze(scene: Scene) -> None:
    """SIGSTOP for longer than a lease, then SIGCONT: the worker must not settle its trial."""
    scene.search()
    worker = scene.worker()
    _at_a_moment(scene)
    _signal(worker, signal.SIGSTOP)
    time.sleep(LEASE + 1.5)
    _signal(worker, signal.SIGCONT)


def full_disk(scene: Scene) -> None:
    """Checkpoints that do not fit on the disk, and a worker that dies without one."""
    with _small_disk(scene.directory / "small") as disk:
        scene.environment["AUTOML_ARTIFACTS"] = str(disk)
        scene.search("-o", "trainer.size=300", "-o", "trainer.seconds=0.3")
        worker = scene.worker()
        _at_a_moment(scene)
        _signal(worker, signal.SIGKILL)
        _join_all(scene)


def wrong_clock(scene: Scene) -> None:
    """Workers whose clocks are hours ahead and behind."""
    hours = scene.draw.uniform(2, 48) * 3600
    scene.search(skew=hours)
    worker = scene.worker(skew=-hours)
    _at_a_moment(scene)
    _signal(worker, signal.SIGKILL)


def two_coordinators(scene: Scene) -> None:
    """Two searches started at once with one name: one creates the study, the other fails."""
    both = [scene.search(), scene.search()]
    for process in both:
        process.join(_SECONDS)
    assert sorted(process.exitcode for process in both) == [0, 2], scene.output()
    assert "exists" in scene.output()


def locked(scene: Scene) -> None:
    """Another program locks the database for a while, or its connections are cut."""
    scene.search()
    scene.worker()
    for _ in range(3):
        _at_a_moment(scene)
        if scene.url.startswith("sqlite"):
            _hold(scene.url, seconds=LEASE + 1)
        else:
            servers.cut_connections(scene.url)
    _survived(scene)


def restarted(scene: Scene) -> None:
    """The database server stops during transactions and starts again."""
    assert scene.cluster is not None
    scene.search()
    scene.worker()
    for _ in range(2):
        _at_a_moment(scene)
        scene.cluster.restart(scene.draw.choice(["immediate", "fast"]), scene.draw.uniform(0, 3))
    _survived(scene)


def slow(scene: Scene) -> None:
    """A distant database: each packet is delayed."""
    real = make_url(scene.url)
    with servers.relay(real) as far:
        far.seconds = scene.draw.uniform(0.002, 0.02)
        url = far.before(real)
        scene.search(url=url)
        worker = scene.worker(url=url)
        _at_a_moment(scene)
        if scene.draw.random() < 0.5:
            far.cut_all()
            _survived(scene)
        else:
            _signal(worker, signal.SIGKILL)
            _join_all(scene)


def partitioned(scene: Scene) -> None:
    """A worker without network for longer than its lease; its packets are silently dropped."""
    real = make_url(scene.url)
    with networks.apart() as network, servers.relay(real, network.host) as gate:
        scene.search()
        scene.worker(url=gate.before(real), network=network.name)
        _at_a_moment(scene)
        network.unplug()
        time.sleep(LEASE + 1.5)
        network.plug()
        _survived(scene)


FAULTS: dict[str, Callable[[Scene], None]] = {
    "kill -9 of one": kill_one,
    "kill -9 of all": kill_all,
    "SIGTERM": preempt,
    "SIGSTOP, SIGCONT": freeze,
    "full disk": full_disk,
    "two coordinators": two_coordinators,
    "connections cut or locked out": locked,
    "clocks hours off": wrong_clock,
    "database restarted": restarted,
    "slow database": slow,
    "network partition": partitioned,
}
ON_SERVERS = ("clocks hours off", "database restarted", "slow database", "network partition")
"""SQLite has no server, and uses the machine's clock."""


def cases(kinds: tuple[str, ...] = ("sqlite", "postgresql")) -> Iterator[tuple[str, str]]:
    """Every fault on every storage on which it can happen."""
    for name in FAULTS:
        yield from ((name, kind) for kind in kinds if kind != "sqlite" or name not in ON_SERVERS)


def inject(scene: Scene, name: str) -> None:
    """Inject one fault, let the study end, and check the invariants."""
    try:
        FAULTS[name](scene)
        scene.end()
        check(scene)
    finally:
        scene.kill()


def check(scene: Scene) -> None:
    """Check the invariants in the database and in the trainers' log."""
    study = open_study(Storage(scene.url), "s")
    try:
        assert Doctor(study).findings() == [], scene.output()
        counts, trials = study.views.counts(), study.optuna.trials
        assert (counts.trials, counts.open, counts.failed) == (TRIALS, 0, 0), scene.output()
        assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
        for view in study.views.trials():
            assert view.state is State.COMPLETE
            assert view.objectives == [faulty.score(study.decisions(view.number))]
        _check_steps(scene)
    finally:
        study.storage.engine.dispose()


def _check_steps(scene: Scene) -> None:
    """Check that no attempt at a trial was made by two processes, or made a step twice.

    A released trial is an exception: another process continues the same attempt.
    """
    processes, steps = defaultdict(set), set()
    for line in scene.log.read_text().splitlines():
        number, attempt, step, pid = line.split()
        processes[number, attempt].add(pid)
        assert (number, attempt, step, pid) not in steps, line
        steps.add((number, attempt, step, pid))
    doubled = {key: pids for key, pids in processes.items() if len(pids) > 1}
    assert scene.gives_back or not doubled, doubled


def _survived(scene: Scene) -> None:
    """Check that a temporary outage of the database ended no worker."""
    _join_all(scene)
    assert {process.exitcode for process in scene.processes} == {0}, scene.output()


# Helpers.
def _at_a_moment(scene: Scene) -> None:
    scene.wait_for_steps(1)
    time.sleep(scene.draw.uniform(0.0, 1.2))


def _signal(process: children.Process, number: signal.Signals) -> None:
    if process.is_alive():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _join_all(scene: Scene) -> None:
    for process in scene.processes:
        process.join(_SECONDS)


@contextmanager
def _small_disk(directory: Path) -> Iterator[Path]:
    """A separate file system that is too small for any checkpoint."""
    directory.mkdir()
    with ExitStack() as stack:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)]
        mounted = os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
        if mounted:
            stack.callback(subprocess.run, ["umount", "-l", str(directory)], check=True)
        else:
            # Without mount, a file in place of the directory makes all writes fail.
            directory.rmdir()
            directory.write_text("")
        yield directory


def _hold(url: str, seconds: float) -> None:
    """Lock an SQLite file for some seconds."""
    engine = create_engine(url)
    with engine.connect() as connection:
        held = threading.Event()
        connection.execute(text("PRAGMA busy_timeout = 60000"))
        connection.commit()
        connection.execute(text("BEGIN EXCLUSIVE"))
        held.wait(seconds)
        connection.rollback()
    engine.dispose()
