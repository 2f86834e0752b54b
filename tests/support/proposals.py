"""Candidates that spaces propose, and their keys at each level."""

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
    """A candidate with these decisions; the others are random."""
    found = {**ask(space, task).decisions, **given}
    return propose(lambda trial: space(trial, task), FixedTrial(found))


def key(candidate):
    """The candidate's key at L1."""
    return canonical(candidate.architecture).key


def sketched(candidate, task):
    """The digests of its architecture at L2; equal architectures share one."""
    found = probe(lambda: Candidate(candidate.architecture, {}), task, Supervised())
    assert found.verdict is Verdict.SOUND, found.reason
    return set(found.sketch.digests(""))
