"""A judge trains the candidates that a trainer of open decisions found, as ordinary trials."""

import pytest
from toys import Toy, blobs, small_space

import automl
from automl import UsageError
from automl.cli import main
from automl.spec import ATTRIBUTE


def toy_search(url, trials=2, **rest):
    options = {"trainer": {"judge": "supervised"}, "judge": {"epochs": 2}}
    return automl.search(
        small_space,
        task=blobs,
        trainer=Toy,
        options=options,
        strategy="random",
        storage=url,
        trials=trials,
        **rest,
    )


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/judge.db"


def judged(study):
    return [t for t in study.optuna.trials if "judges" in t.user_attrs[ATTRIBUTE]]


def test_a_closed_candidate_is_trained_again_from_the_start(url):
    study, _ = toy_search(url)
    trials = study.optuna.trials
    assert len(judged(study)) == 2
    for trial in judged(study):
        source = trials[trial.user_attrs[ATTRIBUTE]["judges"]]
        assert "activation" not in source.params
        assert trial.params["activation"] in ("relu", "tanh", "identity")
        assert trial.params["width"] == source.params["width"]
        assert study.views.trial(trial.number).metrics.keys() >= {"train_loss"}


def test_judged_trials_are_added_to_the_budget_and_none_stays_open(url):
    study, _ = toy_search(url, trials=3)
    counts = study.views.counts()
    assert (counts.trials, counts.open, study.views.budget().slots) == (6, 0, 3)


def test_best_considers_only_judged_trials(url):
    study, best = toy_search(url)
    top = max(judged(study), key=lambda trial: trial.value)
    assert best.values == {"accuracy": top.value}
    assert study.best_trials()[0].user_attrs[ATTRIBUTE]["judges"] is not None


def test_no_judging_past_the_budget_of_evaluations(url):
    study, _ = toy_search(url, trials=None, evaluations=3)
    assert study.views.counts().evaluated == 3


def test_the_judge_survives_in_the_spec(url):
    study, _ = toy_search(url, trials=1)
    assert study.spec.judge.reference == "supervised"
    assert study.spec.judge.options["epochs"] == 2


def test_options_of_a_judge_without_a_judge_are_refused(url):
    with pytest.raises(UsageError, match=r"trainer\.judge=NAME"):
        automl.search("mlp", options={"judge": {"epochs": 1}}, storage=url)


def test_found_decisions_and_their_judges_are_shown(url, capsys):
    toy_search(url, trials=1, study="judged")
    for arguments in (["show", "judged"], ["best", "judged"], ["show", "judged", "--trial", "0"]):
        with pytest.raises(SystemExit):
            main([*arguments, "--storage", url])
    shown = capsys.readouterr().out
    assert "judge supervised" in shown
    assert "judges trial 0" in shown
    assert "(found by the trainer)" in shown


def test_without_a_judge_the_best_candidate_has_the_found_decisions(url):
    study, best = automl.search(
        small_space, task=blobs, trainer=Toy, strategy="random", storage=url, trials=1
    )
    assert "activation" not in study.optuna.trials[0].params
    assert best.decisions["activation"] in ("relu", "tanh", "identity")
    assert "activation" not in best.candidate.open_decisions
