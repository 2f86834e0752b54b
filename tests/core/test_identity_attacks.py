"""Random programs with planted near misses: two functions never meet, two writings of one do.

The long run takes so many cases from the environment (10,000 by default) and prints what it saw.
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
"""Seeds of ways to write a program; 0 is a plain one."""
MISSED = frozenset({"cast", "ghost", "rare"})
"""Steps that a probe cannot show: programs with them may be missed, and are only counted."""


def meet(one: Probe, other: Probe) -> bool:
    """Whether two probes make their candidates one; the context of a sketch must be equal."""
    if not (one.verdict is other.verdict is Verdict.SOUND):
        return False
    if (one.live_parameters, one.consulted) != (other.live_parameters, other.consulted):
        return False
    return one.sketch.agrees(other.sketch)


def may_be_missed(chain) -> bool:
    """Whether a program has a step that a probe cannot show, or a choice among equal experts.

    The first of equal gates is chosen, so the order of writing shows before they are set apart.
    """
    chosen = [step for step in planted.steps(chain) if step[:2] == ("experts", "best")]
    return bool(planted.kinds(chain) & MISSED or chosen)


def probed(chain, seed) -> Probe:
    (features,), (classes,) = TASK.signature.input_shape, TASK.signature.output_shape
    build = planted.written(chain, seed, features, classes)
    return probe(lambda: Candidate(build), TASK, TRAINER)


def judged(program, seeds, seen: Counter) -> tuple[bool, bool]:
    """Whether two writings of a program meet, and whether one meets its near miss."""
    chain, near = (planted.resolved(program, near) for near in (False, True))
    one, other, miss = probed(chain, seeds[0]), probed(chain, seeds[1]), probed(near, seeds[0])
    seen.update(f"probes: {each.verdict.value}" for each in (one, other, miss))
    return meet(one, other), meet(one, miss)


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(planted.programs(), st.tuples(WRITINGS, WRITINGS))
def test_planted_near_misses_never_meet_and_writings_of_one_program_do(program, seeds):
    same, merged = judged(program, seeds, Counter())
    assert not merged
    assert same or may_be_missed(planted.resolved(program, False))


@pytest.mark.long
@pytest.mark.timeout(24 * 3600)
def test_many_planted_near_misses_never_meet(capsys):
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
