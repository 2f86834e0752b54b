"""A search recognises equal candidates and trains them once, depending on the levels."""

import math
import os
from collections import Counter
from pathlib import Path

import optuna
import pytest
import shapes
import toys

import automl

FILE = str(Path(shapes.__file__))
ALWAYS = {"probe_share": "inf"}
GIVEN = {
    "task": f"{Path(toys.__file__)}:blobs",
    "trainer": f"{FILE}:Brief",
    "strategy": "random",
    "device": "cpu",
}


@pytest.fixture
def search(sqlite_url, tmp_path, monkeypatch):
    """Run automl.search on the spaces of `shapes`."""
    monkeypatch.setenv(shapes.LOG, str(tmp_path / "log"))

    def run(space, trials=24, cache=None, **changes):
        options = {"cache": {"exhausted_after": 1000, **(cache or {})}}
        options |= changes.pop("options", {})
        given = {**GIVEN, "storage": sqlite_url, **changes}
        return automl.search(f"{FILE}:{space}", options=options, trials=trials, **given).study

    return run


def levels(study):
    """The number of trials reused at each level."""
    return Counter(v.level for v in study.views.trials() if v.reused_from is not None)


def test_equal_graphs_are_trained_once(search):
    study = search("writings", cache={"levels": "L0,L1"})
    counts = study.views.counts()
    assert (counts.complete, counts.evaluated) == (24, 2)
    assert levels(study)["L1"] == 4
    fingerprints = {}
    for trial, view in zip(study.optuna.trials, study.views.trials(), strict=True):
        fingerprints.setdefault(view.fingerprint, set()).add(trial.params["how"])
    assert sorted(map(sorted, fingerprints.values())) == [
        sorted(set(shapes.WRITINGS) - {"other"}),
        ["other"],
    ]


def test_without_l1_a_probe_finds_equal_functions(search):
    study = search("writings", cache={"levels": "L0,L2", **ALWAYS})
    assert study.views.counts().evaluated == 2
    assert levels(study)["L2"] == 4


def test_functions_without_a_graph_are_recognised_by_a_probe(search):
    study = search("modules", cache=ALWAYS, trials=12)
    assert study.views.counts().evaluated == 2
    found = {}
    for trial, view in zip(study.optuna.trials, study.views.trials(), strict=True):
        found.setdefault(view.fingerprint, set()).add(tuple(trial.params.values()))
    assert sorted(map(sorted, found.values())) == [
        [(False, 1), (True, 1)],
        [(False, 3), (True, 3)],
    ]


def test_with_l0_alone_only_equal_decisions_are_reused(search):
    study = search("writings", cache={"levels": "L0"}, trials=30)
    assert study.views.counts().evaluated == len(shapes.WRITINGS)
    assert set(levels(study)) == {"L0"}


def test_a_probe_that_costs_too_much_is_skipped_and_counted(search):
    study = search("modules", cache={"probe_share": 0.0}, trials=16)
    assert study.views.counts().evaluated == 4
    assert study.views.recognized().skipped == {"cost": 4}


def test_candidates_evaluated_before_probes_pay_off_are_probed_later(search):
    study = search("modules", cache={"probe_share": 1e6}, trials=12)
    # The first trial cannot know how long an evaluation takes; all others probe.
    assert study.views.counts().evaluated == 2
    assert study.views.recognized().skipped == {"cost": 1}


def by_kind(study):
    """The trials of each kind of candidate."""
    found = {}
    for trial, view in zip(study.optuna.trials, study.views.trials(), strict=True):
        found.setdefault(trial.params["how"], []).append(view)
    return found


def test_candidates_that_misbehave_are_not_shared(search):
    space = {"kinds": "good,clock,nan,memory", "writings": 2}
    cache = {**ALWAYS, "probe_megabytes": 1024}
    study = search("bad", cache=cache, trials=30, options={"space": space})
    assert study.views.counts().complete == 30
    found = by_kind(study)
    assert sum(v.reused_from is None for v in found["good"]) == 1
    # A function of the clock does not even equal itself.
    assert all(v.reused_from is None for v in found["clock"])
    for how in ("nan", "memory"):
        assert sum(v.reused_from is None for v in found[how]) == 2
        assert all(v.level == "L0" for v in found[how] if v.reused_from is not None)
    verdicts = study.views.recognized().verdicts
    assert verdicts["degenerate"] == verdicts["unhashable"] == 2
    assert verdicts["non-deterministic"] >= 1


def test_candidates_that_crash_or_block_a_probe_affect_only_themselves(search):
    space = {"kinds": "kill,hang", "writings": 1}
    cache = {**ALWAYS, "probe_seconds": 1.0}
    study = search("bad", cache=cache, trials=6, options={"space": space})
    counts = study.views.counts()
    assert (counts.complete, counts.evaluated) == (6, 2)
    assert study.views.recognized().verdicts == {"unhashable": 2}


def test_degenerate_candidates_can_fail_without_training(search):
    space = {"kinds": "good,nan", "writings": 2}
    cache = {**ALWAYS, "degenerate": "fail"}
    study = search("bad", cache=cache, trials=12, options={"space": space})
    found = by_kind(study)
    assert {v.reason.value for v in found["nan"]} == {"invalid-candidate"}
    assert study.views.counts().evaluated == 1
    assert study.views.budget().stopped is None


def test_a_space_defined_in_no_file_is_not_probed(sqlite_url):
    def nowhere(trial, task):
        return shapes.modules(trial, task)

    given = {**GIVEN, "storage": sqlite_url, "options": {"cache": ALWAYS}}
    study = automl.search(nowhere, trials=16, **given).study
    assert study.views.counts().evaluated == 4
    assert set(study.views.recognized().skipped) == {"parts in no file"}


def test_results_outlive_their_study(search):
    first = search("writings", trials=12, study="first")
    assert first.views.counts().evaluated == 2
    alone = search("writings", trials=12, study="alone")
    assert alone.views.counts().evaluated == 2
    warm = search("writings", trials=12, study="warm", cache_scope="storage")
    assert warm.views.counts().evaluated == 0
    assert warm.views.counts().complete == 12


def test_costs_are_not_shared(search):
    study = search("writings", objectives=["accuracy", "parameters"])
    parameters = {}
    for trial, view in zip(study.optuna.trials, study.views.trials(), strict=True):
        parameters[trial.params["how"]] = view.metrics["parameters"]
        assert view.objectives[1] == view.metrics["parameters"]
        assert view.metrics["flops"] > 0
    # A dead branch computes nothing and is not built either.
    assert len(set(parameters.values())) == 1
    assert study.views.counts().reused > 0


def test_functions_are_evaluated_repeatedly_and_their_mean_is_served(search):
    study = search("writings", cache={"repeats": 3}, trials=30)
    assert study.views.counts().evaluated == 6
    by_function = {}
    for view in study.views.trials():
        by_function.setdefault(view.fingerprint, []).append(view)
    for views in by_function.values():
        paid = [v.objectives[0] for v in views if v.reused_from is None]
        assert len(paid) == 3
        for served in (v.objectives[0] for v in views if v.reused_from is not None):
            assert math.isclose(served, sum(paid) / 3)


def test_evolution_mutates_to_a_new_function(search):
    options = {"strategy": {"population": 2, "tournament": 1, "new_function": True}}
    study = search("writings", strategy="evolution", trials=20, options=options)
    views = study.views.trials()
    changed = 0
    for view in views[2:]:
        parents = [v.fingerprint for v in views[max(0, view.number - 2) : view.number]]
        changed += view.fingerprint not in parents[-1:] or len(set(parents)) > 1
    assert changed == 18
    plain = {"strategy": {"population": 2, "tournament": 1}}
    repeats = search("writings", strategy="evolution", trials=20, options=plain)
    assert study.views.counts().reused <= repeats.views.counts().reused


def test_the_strategy_works_with_plain_optuna(tmp_path):
    from automl_plugins.strategies.evolution import Evolution

    sampler = Evolution(population=4, tournament=2, new_function=True, seed=0)
    plain = optuna.create_study(sampler=sampler)
    plain.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=12)
    assert len(plain.trials) == 12


def test_no_probe_outlives_its_search(search):
    search("modules", cache=ALWAYS, trials=3)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children.read_text().split()]
    assert not any("automl.identity.probes.client" in command for command in commands)
