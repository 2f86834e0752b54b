"""Finds the keys of the functions that a study's candidates compute, at each level that pays.

A candidate is probed if that takes a small share of an evaluation's time. Candidates that were
evaluated before these times were known are probed later, from their decisions.
"""

import logging
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from automl.errors import DegenerateError, StorageError, TimeLimitError
from automl.identity.fingerprint import Identity, Level, Verdict
from automl.identity.keys import SideKeys, StaticKeys, static_keys
from automl.identity.probes.client import Answer, Prober, ProberError, identity_of
from automl.identity.probes.cost import ProbeTimes
from automl.space.candidate import Candidate
from automl.spec import Cache, Degenerate
from automl.study.parts import Parts, costs_of, rebuild
from automl.study.study import Study
from automl.trial_code.boundary import EngineCode, TrialCode

_log = logging.getLogger("automl")

_REMEMBERED = 64
_ASKED_AGAIN = 100
"""After so many candidates were not probed because of the cost, the cost is measured again."""
_BROKEN = "the process that probes does not start"
DEGENERATE = Verdict.DEGENERATE.value
_CATCH_UP = 8
"""How many functions that were evaluated before are probed at a time."""


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
    """Build a candidate that has not been built to find its costs, because that may read files."""
    if candidate.files.built or not (always or callable(candidate.architecture)):
        return
    with suppress(Exception), candidate.files.recording():  # training will report the error
        # Not with `build`, which loads torch even if a space does not need it.
        candidate.architecture() if callable(candidate.architecture) else candidate.build()
    candidate.files.built = True


@dataclass
class Identifier:
    """Finds the identities of one study's candidates on one kind of device.

    Attributes:
        study: The study.
        parts: The study's parts in this process.
        device: The device's name in torch.
        progress: Called while a probe runs; an error that it raises ends the wait.
    """

    study: Study
    parts: Parts
    device: str
    progress: Callable[[], None] = lambda: None
    _digested: dict[int, SideKeys] = field(default_factory=dict, init=False)
    _probers: dict[int, Prober] = field(default_factory=dict, init=False)
    _times: ProbeTimes = field(init=False)
    _answers: dict[str, Answer] = field(default_factory=dict, init=False)
    _passed: set[str] = field(default_factory=set, init=False)
    _refused: int = field(default=0, init=False)
    _broken: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._times = ProbeTimes(_examples(self.parts))
        counts = self.study.views.counts()
        self._evaluated, self._seconds = counts.evaluated, counts.seconds

    def observe(self, seconds: float) -> None:
        """Record how many seconds an evaluation took."""
        self._evaluated += 1
        self._seconds += seconds

    def identify(
        self,
        parts: Parts,
        candidate: Candidate,
        number: int | None = None,
        costs: Mapping[str, float] | None = None,
    ) -> Identity:
        """Return the keys of a candidate, at each level that pays.

        Args:
            parts: The study's parts, or those of its judge.
            candidate: The candidate.
            number: The trial's number, which is the key if all decisions are open.
            costs: The candidate's own costs, if they are known.

        Raises:
            ValueError: No key can represent a decision, such as NaN.
        """
        written = self._written(parts, candidate, number)
        if not self._cache.enabled or Level.L2 not in self._cache.levels:
            return written.identity
        costs = costs_of(parts, candidate) if costs is None else costs
        if reason := self._why_not(parts, candidate, written, costs):
            return replace(written.identity, skipped=reason)
        if self.study.ledger.functions.is_known(written.identity):
            return written.identity
        if parts is self.parts:
            self._catch_up(parts)
        return self._probed(parts, candidate, written, costs)

    def check(self, identity: Identity) -> None:
        """Check that a candidate should be trained.

        Raises:
            DegenerateError: Its outputs are constant or not finite, and the study excludes such
                candidates.
        """
        if self._cache.degenerate is Degenerate.FAIL and identity.verdict == DEGENERATE:
            raise DegenerateError(f"{identity.reason}: not trained (cache.degenerate=fail)")

    def close(self) -> None:
        """End the processes that run the probes."""
        for prober in self._probers.values():
            prober.close()

    def _written(self, parts: Parts, candidate: Candidate, number: int | None) -> StaticKeys:
        cache, side_keys = self._cache, self._side_keys(parts)
        if candidate.open_decisions and not candidate.decisions:
            # All trials are equal, and so repeats with different seeds.
            side_keys = SideKeys({**side_keys.values, "repeat": number})
        beyond = cache.enabled and cache.levels != (Level.L0,)
        with TrialCode():
            unread = parts.trainer.unread(candidate) if beyond else ()
            files = known_files.of(parts, candidate)
            return static_keys(
                candidate, side_keys, unread, graphs=beyond, strict=cache.strict, files=files
            )

    def _side_keys(self, parts: Parts) -> SideKeys:
        # Half and single precision compute different functions, and `auto` depends on the device.
        device = self.device.partition(":")[0]
        if id(parts) not in self._digested:
            self._digested[id(parts)] = SideKeys({**parts.side_keys, "device": device})
        return self._digested[id(parts)]

    # Probes.
    def _why_not(
        self, parts: Parts, candidate: Candidate, written: StaticKeys, costs: Mapping[str, float]
    ) -> str | None:
        """Why a candidate is not probed; None if it is."""
        if candidate.open_decisions:
            return "open decisions"
        if written.shared is None:
            return "hyperparameters of no plain value"
        if self._broken or not parts.recipe.complete:
            return _BROKEN if self._broken else "parts in no file"
        return None if self._pays(costs) else "cost"

    def _pays(self, costs: Mapping[str, float]) -> bool:
        share = self._cache.probe_share
        if share == float("inf"):
            return True
        if not self._evaluated:
            return False
        if self._times.expected(costs) <= share * self._seconds / self._evaluated:
            return True
        self._refused += 1
        if self._refused % _ASKED_AGAIN == 0:
            self._times.forget()
        return False

    def _probed(
        self, parts: Parts, candidate: Candidate, written: StaticKeys, costs: Mapping[str, float]
    ) -> Identity:
        key = written.identity.l1 or written.identity.l0
        if key in self._answers:
            return identity_of(written, replace(self._answers[key], seconds=0.0))
        try:
            found = self._prober(parts).probe(candidate.decisions)
        except ProberError as error:
            self._broken = True
            _log.warning("functions are not compared (L2): %s", error)
            return replace(written.identity, skipped=_BROKEN)
        self._times.observe(costs, found.seconds)
        self._remember(key, found)
        return identity_of(written, found)

    def _remember(self, key: str, found: Answer) -> None:
        # A strategy that looks for a new function probes a candidate before its trial does.
        self._answers[key] = found
        if len(self._answers) > _REMEMBERED:
            del self._answers[next(iter(self._answers))]

    def _prober(self, parts: Parts) -> Prober:
        if id(parts) not in self._probers:
            cache = self._cache
            limits = (cache.probe_seconds, cache.probe_megabytes)
            self._probers[id(parts)] = Prober(parts.recipe, *limits, self.progress)
        return self._probers[id(parts)]

    def _catch_up(self, parts: Parts) -> None:
        """Probe some of the functions that were evaluated before probes were known to pay."""
        functions = self.study.ledger.functions
        for fingerprint, number in functions.unprobed(_CATCH_UP, self._passed):
            identity = self._probed_again(parts, number)
            if identity is None or identity.verdict is None:
                self._passed.add(fingerprint)
            else:
                functions.add_probe(fingerprint, identity)

    def _probed_again(self, parts: Parts, number: int) -> Identity | None:
        """The identity of an earlier trial, with a probe; None if it cannot be probed."""
        try:
            decisions = self.study.decisions(number)
            with TrialCode():
                candidate = rebuild(parts, decisions)
            written = self._written(parts, candidate, number)
        except StorageError:
            raise
        except Exception:
            return None  # whatever a space or a trainer raises: this trial must not fail for it
        costs = costs_of(parts, candidate)
        if self._why_not(parts, candidate, written, costs):
            return None
        return self._probed(parts, candidate, written, costs)

    @property
    def _cache(self) -> Cache:
        return self.study.spec.cache


def _examples(parts: Parts) -> int:
    """How many examples the probe's batch has; 1 if unknown."""
    with suppress(Exception):
        return len(parts.task.probe()[0])
    return 1


@dataclass(frozen=True)
class StrategyContext:
    """What a strategy may ask the engine: which decisions make the same function, and means."""

    identifier: Identifier

    def fingerprint(self, decisions: Mapping[str, Any]) -> str | None:
        """Return a key that equal functions share; None if the decisions make no candidate."""
        with EngineCode():
            return self._fingerprint(decisions)

    def _fingerprint(self, decisions: Mapping[str, Any]) -> str | None:
        parts = self.identifier.parts
        try:
            with TrialCode():
                candidate = rebuild(parts, decisions)
        except Exception:  # whatever a space raises where decisions are missing or do not fit
            return None
        if candidate.open_decisions:
            return None
        identity = self.identifier.identify(parts, candidate)
        if identity.verdict == DEGENERATE:
            return DEGENERATE  # one key for all of them: none is worth another try
        return self.identifier.study.ledger.functions.fingerprint(identity)

    def means(self) -> Mapping[int, tuple[float, ...]]:
        """Return mean values by trial number, of functions that were evaluated several times."""
        study = self.identifier.study
        with EngineCode():
            return study.views.means() if study.spec.cache.repeats > 1 else {}
