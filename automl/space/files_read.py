"""Which files a user's code reads, known by what they hold.

A space may load weights or a list of architectures from a file. What it proposes then depends on
the file's content, which no decision shows. So what is opened for reading is noted, by Python's
own audit events, and the digests of the contents become part of a candidate's identity.

`import automl` loads this module, so that what a script reads afterwards is noted, too: keep it
cheap.
"""

import functools
import hashlib
import importlib.util
import logging
import os
import stat
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

_log = logging.getLogger("automl")

_SYSTEM = ("/proc", "/sys", "/usr/lib")
_PACKAGES = ("site-packages", "dist-packages")
_IMPORTING = ("<frozen importlib._bootstrap_external>", "<frozen importlib._bootstrap>")

_DEPTH = 6
"""Frames between the opening of a file and the module that asked for it."""

_hashed: dict[str, tuple[tuple[int, ...], str]] = {}
"""For each file hashed so far, its place, size and time, and the digest."""


@dataclass(eq=False)
class FilesRead:
    """The files that were read, with the digests of what they held at that moment.

    built: whether the building of a module was watched, too.
    """

    digests: dict[str, str] = field(default_factory=dict)
    built: bool = False
    _written: set[str] = field(default_factory=set)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what this thread opens for reading inside, and the threads that it starts here."""
        _hear_safetensors()
        before = _here.reader, _here.watched
        _here.reader, _here.watched = self, True
        _recording.append(self)
        try:
            yield
        finally:
            _recording.remove(self)
            _here.reader, _here.watched = before

    def opened(self, path: str, flags: int) -> None:
        """Note that a file is being opened."""
        if _is_known(path):
            return
        if flags & (os.O_WRONLY | os.O_RDWR) and (flags & os.O_TRUNC or not Path(path).exists()):
            self._written.add(path)  # whatever is read of it later was made here
        elif not flags & os.O_WRONLY and path not in self._written and path not in self.digests:
            self.digests[path] = self._seen(path)

    def _seen(self, path: str) -> str:
        return digest_of_file(path)


class _ReadByScripts(FilesRead):
    """Files as they were when a script read them; most are never asked for, and never hashed."""

    def _seen(self, path: str) -> str:
        return _state(path)

    def counted(self) -> dict[str, str]:
        """Their digests; one that only this process has where a file changed since it was read."""
        return {path: self._digest(path, then) for path, then in list(self.digests.items())}

    def _digest(self, path: str, then: str) -> str:
        if then == _ABSENT or then == _state(path):
            return then if then == _ABSENT else digest_of_file(path)
        return f"changed {then} {_PROCESS}"


_ABSENT = "absent"
_PROCESS = os.urandom(16).hex()
"""Stands for what only this process knows."""
read_by_code = FilesRead()
"""What user code read while this process loaded it."""
_read_by_scripts = _ReadByScripts()
"""What scripts and the modules that they import read at their top level, before any search."""


def count_scripts() -> None:
    """Let what scripts read count, for a search uses an object that one of them made.

    Workers load its file and see what that reads; here it ran before anything could watch.
    """
    read_by_code.digests.update(_read_by_scripts.counted())


@contextmanager
def loading() -> Iterator[None]:
    """Note what user code reads while it is loaded; what it imports is known otherwise."""
    with read_by_code.recording():
        yield


def digest_of_file(path: str) -> str:
    """A digest of what a file holds; a new one each time where it cannot be read.

    A file is hashed once and remembered by its place, size and time of change.
    """
    try:
        found = Path(path).stat()
        if stat.S_ISDIR(found.st_mode):
            return _ABSENT
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        at = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        known = _hashed.get(path)
        if known is None or known[0] != at:
            with unwatched(), Path(path).open("rb") as file:
                known = at, hashlib.file_digest(file, "sha256").hexdigest()
            _hashed[path] = known
        return known[1]
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        return _ABSENT  # opening it will fail, too
    except OSError as error:
        reason = error.strerror or error
        _log.warning("%s cannot be hashed, so what reads it is not shared: %s", path, reason)
        return f"unread {os.urandom(16).hex()}"


def _state(path: str) -> str:
    """What tells a file that has changed from one that has not, without a look into it."""
    try:
        found = Path(path).stat()
    except OSError:
        return _ABSENT
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"


class _Here(threading.local):
    """What this thread's reads are noted by."""

    reader: FilesRead | None = None
    watched: bool = True


_here = _Here()
_recording: list[FilesRead] = []
"""What any thread records now."""


@functools.cache
def install() -> None:
    """Hear from now on what this process opens."""
    _installed()
    _hear_threads()
    sys.addaudithook(_hear)


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        _note(args[0], args[2])
    elif event == "sqlite3.connect":
        _note(args[0], os.O_RDONLY)


def _hear_threads() -> None:
    """Let each thread know in whose recording it was started; Python 3.11 raises no event."""
    start = threading.Thread.start

    @functools.wraps(start)
    def started(thread: threading.Thread) -> None:
        if readers := _readers():
            vars(thread)["_automl_readers"] = readers
        start(thread)

    threading.Thread.start = started  # type: ignore[method-assign,assignment]


def _note(path: object, flags: int) -> None:
    if not isinstance(path, str | bytes | os.PathLike) or not (readers := _readers()):
        return
    if _is_shown(sys._getframe(1)):
        return
    with unwatched():
        if (place := _place(os.path.realpath(os.fsdecode(path)))) is not None:
            for reader in readers:
                reader.opened(place, flags)


def _is_shown(frame: FrameType | None) -> bool:
    """Whether Python reads a line of code to show it in a warning or a traceback."""
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == "linecache":
            return True
        frame = frame.f_back
    return False


def _readers() -> list[FilesRead]:
    """What notes that this thread opens a file now."""
    if not _here.watched:
        return []
    if _here.reader is not None:
        return [_here.reader]
    inherited: list[FilesRead] = getattr(threading.current_thread(), "_automl_readers", [])
    if inherited:
        # A pool's thread was started for one candidate and reads for another.
        return [*inherited, *(each for each in _recording if each not in inherited)]
    return [_read_by_scripts] if _is_top_level(sys._getframe(1)) else []


def _is_top_level(frame: FrameType | None) -> bool:
    """Whether a user's module runs at its top level, and nothing of automl was called."""
    found = False
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if isinstance(name, str) and name.startswith("automl.") and name != __name__:
            return False
        code = frame.f_code
        found = found or (code.co_name == "<module>" and not _is_known(code.co_filename))
        frame = frame.f_back
    return found


def _place(path: str) -> str | None:
    """The file whose content counts; None where an import statement opens it, as code.

    A loader that a user calls reads what Python has compiled before; its source counts.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    while frame is not None and frame.f_code.co_filename == _IMPORTING[0]:
        frame = frame.f_back
    if frame is not None and frame.f_code.co_filename == _IMPORTING[1]:
        return None
    if path.endswith(".pyc"):
        with suppress(ValueError, NotImplementedError):  # it is in no __pycache__
            source = importlib.util.source_from_cache(path)
            return source if Path(source).exists() else path
    return path


@functools.cache
def _hear_safetensors() -> None:
    """Note its files, too: it opens them below Python, where no audit event is raised."""
    import safetensors

    opened = safetensors.safe_open

    @functools.wraps(opened)
    def safe_open(filename: Any, *args: Any, **kwargs: Any) -> Any:
        _note(filename, os.O_RDONLY)
        return opened(filename, *args, **kwargs)

    for name in ("safetensors", "safetensors.torch", "safetensors.numpy"):
        if name in sys.modules:
            sys.modules[name].safe_open = safe_open  # type: ignore[attr-defined]


@contextmanager
def unwatched() -> Iterator[None]:
    """Note nothing inside."""
    before, _here.watched = _here.watched, False
    try:
        yield
    finally:
        _here.watched = before


def _is_known(path: str) -> bool:
    """Whether a file is the system's, Python's or an installed package's, or a device."""
    if path.startswith("/dev/"):
        with suppress(OSError):
            return stat.S_ISCHR(Path(path).stat().st_mode)
    return path.startswith(_installed()) or any(name in Path(path).parts for name in _PACKAGES)


@functools.cache
def _installed() -> tuple[str, ...]:
    paths = {
        *sysconfig.get_paths().values(),
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).parents[1]),
    }
    # A prefix such as /usr would take in what users keep below it, so libraries alone count there.
    real = {os.path.realpath(path) for path in paths} - {"/", "/usr", "/usr/local"}
    return tuple(f"{path}{os.sep}" for path in (*real, *_SYSTEM))
