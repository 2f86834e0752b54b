"""Candidates that spaces propose, and what identity says of them."""

import optuna
from automl_plugins.trainers.supervised import Supervised
from optuna.trial import FixedTrial

from automl import Candidate
from automl.identity.fingerprint import Verdict
from automl.identity.graphs.canonical import canonical
from automl.identity.probes.probe import probe
from automl.space.candidate import propose


def ask(space, task, seed=0, **options):
    """A random candidate."""
    sampler = optuna.samplers.RandomSampler(seed=seed)
    trial = optuna.create_study(sampler=sampler).ask()
    return propose(lambda deciding: space(deciding, task, **options), trial)


def with_decisions(space, task, **given):
    """A candidate of these decisions, the others being those of a draw."""
    found = {**ask(space, task).decisions, **given}
    return propose(lambda trial: space(trial, task), FixedTrial(found))


def key(candidate):
    """What L1 knows it by."""
    return canonical(candidate.architecture).key


def sketched(candidate, task):
    """What L2 knows its architecture by: equal ones have a digest in common."""
    found = probe(lambda: Candidate(candidate.architecture, {}), task, Supervised())
    assert found.verdict is Verdict.SOUND, found.reason
    return set(found.sketch.digests(""))
