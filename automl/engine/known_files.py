"""The files that the candidates of a space depend on."""

from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, field

from automl.errors import TimeLimitError
from automl.space.candidate import Candidate
from automl.study.parts import Parts, rebuild


@dataclass
class KnownFiles:
    """The files that a space reads to make candidates, by the digests of their contents.

    A space may read a file once per process, for the first candidate that needs it, and remember
    it. Later candidates may depend on it, too, so it counts for all of them.
    """

    _seen: set[str] = field(default_factory=set)
    _remembered: dict[str, str] = field(default_factory=dict)

    def of(self, parts: Parts, candidate: Candidate) -> tuple[str, ...]:
        """Return the digests of all files that a candidate may depend on."""
        _see_building(parts, candidate)
        read = candidate.files.digests
        if new := read.keys() - self._seen:
            self._seen |= new
            again = _read_again(parts, candidate)
            self._remembered |= {path: read[path] for path in new - again}
        return tuple(sorted({*read.values(), *self._remembered.values()}))


def _read_again(parts: Parts, candidate: Candidate) -> Set[str]:
    """The files that are read again for the same decisions; none if the space fails this time."""
    try:
        again = rebuild(parts, candidate.decisions)
    except TimeLimitError:
        raise
    except Exception:
        return frozenset()  # such a space may remember every file
    _see_building(parts, again, always=candidate.files.built)
    return again.files.digests.keys()


known_files = KnownFiles()
"""The files that spaces have read in this process."""


def _see_building(parts: Parts, candidate: Candidate, always: bool = False) -> None:
    """Build a candidate unless its costs required it already, because building may read files."""
    if candidate.files.built or not (always or callable(candidate.architecture)):
        return
    with suppress(Exception), candidate.files.recording():  # training will report the error
        # Not with `build`, which loads torch even if a space does not need it.
        candidate.architecture() if callable(candidate.architecture) else candidate.build()
    candidate.files.built = True
