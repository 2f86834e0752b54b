"""Random programs with planted near misses: different functions never match, rewritten ones do.

The number of cases of the long run comes from IDENTITY_CASES (10,000 by default).
"""

import os
from collections import Counter

import planted
import pytest
from automl_plugins.trainers.supervised import Supervised
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from toys import blobs

from automl import Candidate
from automl.identity.fingerprint import Verdict
from automl.identity.probes.probe import Probe, probe

TASK = blobs()
TRAINER = Supervised(lr=1e-2)
CASES = int(os.environ.get("IDENTITY_CASES", "10000"))
WRITINGS = st.just(0) | st.integers(1, 2**32)
"""Seeds for the way a program is written; 0 is the plain way."""
MISSED = frozenset({"cast", "ghost", "rare"})
"""Steps that a probe cannot show: programs with them may be missed and are only counted."""


def match(one: Probe, other: Probe) -> bool:
    """Whether two probes find equal candidates; the context of their sketches must be equal."""
    if not (one.verdict is other.verdict is Verdict.SOUND):
        return False
    if (one.live_parameters, one.consulted) != (other.live_parameters, other.consulted):
        return False
    return one.sketch.agrees(other.sketch)


def may_be_missed(chain) -> bool:
    """Whether a program has a step that a probe cannot show, or a choice among equal experts.

    The first of equal gates wins, so their order matters before they are told apart.
    """
    chosen = [step for step in planted.steps(chain) if step[:2] == ("experts", "best")]
    return bool(planted.kinds(chain) & MISSED or chosen)


def probed(chain, seed) -> Probe:
    (features,), (classes,) = TASK.signature.input_shape, TASK.signature.output_shape
    build = planted.written(chain, seed, features, classes)
    return probe(lambda: Candidate(build), TASK, TRAINER)


def judged(program, seeds, seen: Counter) -> tuple[bool, bool]:
    """Whether a program matches its rewritten form, and whether it matches its near miss."""
    chain, near = (planted.resolved(program, near) for near in (False, True))
    one, other, miss = probed(chain, seeds[0]), probed(chain, seeds[1]), probed(near, seeds[0])
    seen.update(f"probes: {each.verdict.value}" for each in (one, other, miss))
    return match(one, other), match(one, miss)


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(planted.programs(), st.tuples(WRITINGS, WRITINGS))
def test_planted_near_misses_differ_and_rewritten_programs_match(program, seeds):
    same, merged = judged(program, seeds, Counter())
    assert not merged
    assert same or may_be_missed(planted.resolved(program, False))


@pytest.mark.long
@pytest.mark.timeout(24 * 3600)
def test_many_planted_near_misses_differ(capsys):
    seen: Counter = Counter()
    merged = []

    phases = [Phase.generate]
    checks = list(HealthCheck)

    @settings(
        max_examples=CASES,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=checks,
    )
    @given(planted.programs(), st.tuples(WRITINGS, WRITINGS))
    def case(program, seeds):
        same, wrong = judged(program, seeds, seen)
        seen["cases"] += 1
        about = planted.planted(program)
        seen[f"near misses, {about}"] += 1
        seen[f"near misses that met, {about}"] += wrong
        held = may_be_missed(planted.resolved(program, False))
        what = "a step that may be missed" if held else "none such"
        seen[f"writings of one program, with {what}"] += 1
        seen[f"writings that did not meet, with {what}"] += not same
        if wrong:
            merged.append((program, seeds))

    case()
    with capsys.disabled():
        print()
        for name, count in sorted(seen.items()):
            print(f"  {count:>7}  {name}")
    assert not merged, merged[:3]
    assert not seen["writings that did not meet, with none such"]
