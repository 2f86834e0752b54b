"""Which files a user's code reads, known by what they hold.

A space may load weights or a list of architectures from a file. What it proposes then depends on
the file's content, which no decision shows. So what is opened for reading is noted, by Python's
own audit events, and the digests of the contents become part of a candidate's identity.
"""

import functools
import hashlib
import logging
import os
import stat
import sys
import sysconfig
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_log = logging.getLogger("automl")

_CODE = (".py", ".pyc", ".pyd", ".so")
"""Code is known by its text or its package's version, see `sources`."""
_SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr/lib", "/usr/share")

_hashed: dict[str, tuple[tuple[int, ...], str]] = {}
"""For each file hashed so far, its place, size and time, and the digest."""


@dataclass
class FilesRead:
    """The files that were read, with the digests of what they held at that moment.

    built: whether the building of a module was watched, too.
    """

    digests: dict[str, str] = field(default_factory=dict)
    built: bool = False
    _written: set[str] = field(default_factory=set)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what this thread opens for reading inside."""
        _install()
        before, _local.reader = getattr(_local, "reader", None), self
        try:
            yield
        finally:
            _local.reader = before

    def opened(self, path: str, flags: int) -> None:
        """Note that a file is being opened."""
        if _is_known(path):
            return
        if flags & (os.O_WRONLY | os.O_RDWR) and (flags & os.O_TRUNC or not Path(path).exists()):
            self._written.add(path)  # whatever is read of it later was made here
        elif not flags & os.O_WRONLY and path not in self._written and path not in self.digests:
            self.digests[path] = digest_of_file(path)


read_by_code = FilesRead()
"""What user code read while this process loaded it."""


@contextmanager
def loading() -> Iterator[None]:
    """Note what user code reads while it is loaded; its code itself is known otherwise."""
    with read_by_code.recording():
        yield
    for path in [path for path in read_by_code.digests if path.endswith(_CODE)]:
        del read_by_code.digests[path]


def digest_of_file(path: str) -> str:
    """A digest of what a file holds; a new one each time where it cannot be read.

    A file is hashed once and remembered by its place, size and time of change.
    """
    try:
        found = Path(path).stat()
        if stat.S_ISDIR(found.st_mode):
            return "absent"
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
        return "absent"  # as whoever opens it will find
    except OSError as error:
        reason = error.strerror or error
        _log.warning("%s cannot be hashed, so what reads it is not shared: %s", path, reason)
        return f"unread {uuid.uuid4().hex}"


_local = threading.local()


@functools.cache
def _install() -> None:
    sys.addaudithook(_hear)
    _hear_safetensors()


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        _note(args[0], args[2])
    elif event == "sqlite3.connect":
        _note(args[0], os.O_RDONLY)


def _note(path: object, flags: int) -> None:
    reader = getattr(_local, "reader", None)
    if reader is not None and isinstance(path, str | bytes | os.PathLike):
        with unwatched():
            reader.opened(os.path.realpath(os.fsdecode(path)), flags)


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
    before, _local.reader = getattr(_local, "reader", None), None
    try:
        yield
    finally:
        _local.reader = before


def _is_known(path: str) -> bool:
    """Whether a file belongs to the system, to Python or to an installed package."""
    return path.endswith(".pyc") or path.startswith(_installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    paths = {
        *sysconfig.get_paths().values(),
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).parent),
    }
    # A prefix such as /usr would take in what users keep below it, so libraries alone count there.
    real = {os.path.realpath(path) for path in paths} - {"/", "/usr", "/usr/local"}
    return tuple(f"{path}{os.sep}" for path in (*real, *_SYSTEM))
