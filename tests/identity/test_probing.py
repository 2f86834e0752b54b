"""The probing process: misbehaving candidates affect neither other candidates nor the search."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import shapes
import toys

from automl.identity.probes.client import Answer, End, PartsError, Prober, StartError
from automl.plugin.registry import Kind, Registry
from automl.study.plan import plan
from automl.study.search_request import SearchRequest

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")

FILE = str(Path(shapes.__file__))
GIVEN = {"task": f"{Path(toys.__file__)}:blobs", "trainer": f"{FILE}:Brief"}
TESTS = Path(shapes.__file__).parent
SOON = 30.0
CHILD = """
import json, sys
sys.path.append(sys.argv[1])
from automl.identity.probes.client import Prober
from automl.plugin.recipe import Recipe
prober = Prober(Recipe.from_json(json.loads(sys.argv[2])), seconds=float(sys.argv[3]))
answer = prober.probe({"how": sys.argv[4], "number": 0, "keeps": 0})
prober.close()
print(answer.verdict)
"""


def recipe(space: str = f"{FILE}:unruly"):
    return plan(SearchRequest(space, **GIVEN), Registry()).parts.recipe


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(shapes.LOG, str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def prober(log) -> Iterator[Callable[..., Prober]]:
    made: list[Prober] = []

    def make(**limits: float) -> Prober:
        made.append(Prober(recipe(), **limits))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def parent(log) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start another process that probes one candidate and prints the verdict."""
    made: list[subprocess.Popen[str]] = []

    def start(how: str, seconds: float, **given: object) -> "subprocess.Popen[str]":
        arguments = [str(TESTS), json.dumps(recipe().to_json()), str(seconds), how]
        command = [sys.executable, "-c", CHILD, *arguments]
        made.append(subprocess.Popen(command, text=True, **given))
        return made[-1]

    yield start
    for each in made:
        each.kill()
        each.wait()


def ask(prober: Prober, how: str, number: int = 0, keeps: int = 0) -> Answer:
    return prober.probe({"how": how, "number": number, "keeps": keeps})


def children() -> list[int]:
    """The processes that this one started and did not wait for, including those that ended."""
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in found]


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def eventually(holds: Callable[[], object]) -> bool:
    end = time.monotonic() + SOON
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(holds())


def left(log: Path) -> list[int]:
    """The ids of processes that candidates left behind."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def test_processes_that_candidates_leave_behind_end_with_the_prober(prober, log):
    warm = prober(seconds=1.0)
    blocked = ask(warm, "fork")
    assert (blocked.verdict, blocked.end) == ("unhashable", End.TIMED_OUT)
    assert blocked.reason == "it took more than 1 seconds"
    assert blocked.seconds >= 1
    dead = ask(warm, "fork and die")
    assert (dead.verdict, dead.end) == ("unhashable", End.CRASHED)
    assert dead.reason == "it ended its process (SIGKILL)"
    assert len(left(log)) == 2
    assert eventually(lambda: not any(map(runs, left(log))))


@pytest.mark.long
def test_a_child_that_escapes_is_not_waited_for(prober):
    warm = prober(seconds=1.0)
    blocked = ask(warm, "escape")
    assert blocked.end is End.TIMED_OUT


def test_a_crash_costs_only_its_own_candidate(prober):
    warm = prober()
    assert ask(warm, "good").verdict == "sound"
    began = time.perf_counter()
    crashed = ask(warm, "exit")
    assert (crashed.verdict, crashed.end) == ("unhashable", End.CRASHED)
    assert crashed.reason == "it ended its process (exit code 3)"
    # The next probe waits for a new process.
    after = ask(warm, "good")
    assert (after.verdict, after.end) == ("sound", None)
    assert 0 < crashed.seconds < crashed.seconds + after.seconds < time.perf_counter() - began
    cut = ask(warm, "cut")
    assert (cut.verdict, cut.end) == ("unhashable", End.CRASHED)


@pytest.mark.long
def test_memory_that_a_candidate_keeps_does_not_affect_others(prober):
    warm = prober(megabytes=512)
    found = [ask(warm, "good", number, 100).verdict for number in range(6)]
    assert found == 6 * ["sound"]


@pytest.mark.long
def test_lack_of_memory_counts_only_in_a_fresh_process(prober):
    warm = prober(megabytes=512)
    # Memory that is reserved but never written to is not resident.
    found = [ask(warm, "reserve", number, 200).verdict for number in range(3)]
    assert found == 3 * ["sound"]
    too_large = ask(warm, "large")
    assert (too_large.verdict, too_large.end) == ("unhashable", None)


def test_candidates_print_nothing_and_leave_no_processes(prober, capfd):
    before = children()
    warm = prober()
    warm.start()
    warm.start()
    assert len(children()) == len(before) + 1
    assert ask(warm, "print").verdict == "sound"
    assert ask(warm, "exit").verdict == "unhashable"
    warm.close()
    warm.close()
    assert children() == before
    assert capfd.readouterr() == ("", "")


def test_parts_that_fail_to_load_are_named(tmp_path, log):
    before = children()
    file = tmp_path / "mine.py"
    file.write_text("def space(trial, task):\n    return None\n")
    mine = Prober(recipe(f"{file}:space"))
    file.write_text("def space(trial, task):\n    return 1\n")
    with pytest.raises(PartsError, match="has changed since"):
        mine.probe({})
    assert children() == before


@pytest.mark.long
def test_a_failed_start_is_retried_once(prober, tmp_path, monkeypatch):
    count = tmp_path / "count"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho >> "{count}"\nexit 7\n')
    python.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        with pytest.raises(StartError, match="exit code 7"):
            ask(prober(), "good")
        assert count.read_text() == "\n\n"
        patch.setattr(sys, "executable", str(tmp_path / "nowhere"))
        with pytest.raises(StartError, match="No such file"):
            ask(prober(), "good")
    python.write_text(
        f'#!/bin/sh\necho >> "{count}"\n[ $(wc -l < "{count}") = 3 ] && exit 7\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    monkeypatch.setattr(sys, "executable", str(python))
    assert ask(prober(), "good").verdict == "sound"


def test_the_process_and_its_children_end_with_the_parent(parent, log):
    ours = parent("fork and spin", 600.0)
    assert eventually(lambda: left(log))
    # A child of a candidate is in the group of its process.
    helper = os.getpgid(left(log)[0])
    assert helper != os.getpgid(0)
    ours.kill()
    assert eventually(lambda: not any(map(runs, [helper, *left(log)])))


@pytest.mark.long
def test_the_process_limits_its_own_time(parent, log):
    ours = parent("fork and spin", 0.5)
    assert eventually(lambda: left(log))
    helper = os.getpgid(left(log)[0])
    ours.send_signal(signal.SIGSTOP)
    assert eventually(lambda: not runs(helper))


def test_the_parent_needs_no_standard_input(parent):
    closed = parent(
        "print",
        60.0,
        preexec_fn=lambda: os.close(0),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert closed.communicate(timeout=2 * SOON) == ("sound\n", "")


def test_files_in_the_working_directory_are_not_imported(prober, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    (tmp_path / "queue.py").write_text(f"open({str(mark)!r}, 'w')\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    assert ask(prober(), "good").verdict == "sound"
    assert not mark.exists()


@pytest.mark.long
def test_workers_import_the_users_modules_and_no_others(tmp_path, sqlite_url):
    mark = tmp_path / "mark"
    (tmp_path / "queue.py").write_text(f"open({str(mark)!r}, 'w')\nraise SystemExit(9)\n")
    (tmp_path / "helper.py").write_text("WIDTHS = (4, 8)\n")
    (tmp_path / "mine.py").write_text(
        "import os\nfrom pathlib import Path\nfrom torch import nn\nfrom helper import WIDTHS\n"
        f"Path({str(tmp_path)!r}, f'loaded-{{os.getpid()}}').touch()\n"
        "def space(trial, task):\n"
        "    width = trial.suggest_categorical('width', WIDTHS)\n"
        "    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 3))\n"
    )
    start = [sys.executable, "-P", "-m", "automl", "search", "mine:space", "--workers", "2"]
    given = ["--task", GIVEN[Kind.TASK], "--trainer", GIVEN[Kind.TRAINER], "--storage", sqlite_url]
    command = [*start, *given, "--trials", "2", "--device", "cpu"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "exit code" not in done.stderr
    assert not mark.exists()
    assert len(list(tmp_path.glob("loaded-*"))) == 2
