"""The files that this process keeps open, and that code of a trial may close.

Some code closes all descriptors that it finds, as a daemon does when it starts. SQLite's locks and
a server's sockets are then gone, too, and calls of the database fail, or wait for minutes.
"""

import os
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from pathlib import Path

_Identity = tuple[int, int]
"""The device and the inode of an open file, which tell it from a later file of its number."""


class OwnFiles:
    """Notices when files of this process were closed.

    Connections to a server are not followed, because drivers close and open them at any time. A
    pipe, which nothing else uses, stands for them: code that closes everything closes it, too.

    Args:
        paths: Files to follow, if this process has them open now.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._pipe, unused = os.pipe()
        os.close(unused)
        followed = {_of_number(self._pipe), *map(_of_path, paths)}
        self._numbers = _numbers(followed)

    def are_lost(self) -> bool:
        """Whether one of the files is open no longer."""
        if self._are_where_they_were():
            return False
        # A database may have closed one of several connections to a file.
        before, self._numbers = self._numbers, _numbers(set(self._numbers))
        return self._numbers.keys() != before.keys()

    def _are_where_they_were(self) -> bool:
        # At every tick of a trainer, so in as little time as possible.
        try:
            for known, number in self._numbers.items():
                found = os.fstat(number)
                if (found.st_dev, found.st_ino) != known:
                    return False
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the pipe."""
        with suppress(OSError):
            os.close(self._pipe)


def _of_path(path: Path) -> _Identity | None:
    with suppress(OSError):
        return _identity(path.stat())
    return None


def _of_number(number: int) -> _Identity | None:
    with suppress(OSError):
        return _identity(os.fstat(number))
    return None


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino


def _numbers(followed: Set[_Identity | None]) -> dict[_Identity, int]:
    """Return a descriptor of each of these files that this process has open."""
    found = ((_of_number(number), number) for number in _open_numbers())
    return {known: number for known, number in found if known is not None and known in followed}


def _open_numbers() -> Iterator[int]:
    with suppress(OSError):  # Windows has no list of them
        yield from (int(path.name) for path in Path("/dev/fd").iterdir())
