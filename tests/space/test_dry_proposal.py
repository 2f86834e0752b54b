"""Where a space takes its decisions, found by proposing with everything open."""

import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn
from toys import blobs, small_space

from automl import Candidate, Graph, Open, OpenDecisionError, Scope, Use, UseKind
from automl.nn import Dropout
from automl.space.candidate import propose
from automl.space.dry_proposal import DryProposals

VALUE = (Use(UseKind.VALUE),)
CHOICE = Use(UseKind.OPERATION, "activation", "", Scope.BATCH, True, True)
RATE = Use(UseKind.ATTRIBUTE, "dropout", "p", Scope.SAMPLE)


def uses(space, *names, closed=None):
    dry = DryProposals(lambda trial: space(trial, blobs()))
    return {name: dry.uses(name, closed or {}) for name in names}


def test_the_uses_of_a_graph_and_of_hyperparameters():
    found = uses(small_space, "width", "activation", "rate", "lr")
    assert found == {
        "width": VALUE,
        "activation": (CHOICE,),
        "rate": (RATE,),
        "lr": (Use(UseKind.HYPERPARAMETER, "", "lr"),),
    }


def layered(trial, task):
    """A plain module: one rate can be open, one goes to a layer of torch, one is computed with."""
    q7 = trial.suggest_float("q7", 0.0, 0.5)
    plain = trial.suggest_float("plain", 0.0, 0.5)
    width = trial.suggest_int("width", 4, 8)

    def build():
        return nn.Sequential(
            nn.Linear(4, width), Dropout(q7), nn.Dropout(plain), nn.Linear(width, 3)
        )

    return Candidate(build, {"lr": 1e-2})


def test_a_decision_next_to_one_that_cannot_open():
    assert uses(layered, "q7", "plain", "width") == {
        "q7": (Use(UseKind.LAYER, "Dropout", "p", Scope.SAMPLE),),
        "plain": VALUE,
        "width": VALUE,
    }


def two_places(trial, task):
    rate = trial.suggest_float("rate", 0.0, 0.5)
    graph = Graph()
    h = graph.add("dropout", graph.input("x", (4,)), p=rate)
    graph.output(graph.add("linear", graph.add("dropout", h, p=rate), features=3))
    return Candidate(graph, {"label_smoothing": rate})


def test_all_places_of_one_decision_are_found_once():
    assert set(uses(two_places, "rate")["rate"]) == {
        RATE,
        Use(UseKind.HYPERPARAMETER, "", "label_smoothing"),
    }


def conditional(trial, task):
    graph = Graph()
    h = graph.input("x", (4,))
    for block in range(trial.suggest_int("blocks", 1, 2)):
        h = graph.add("dropout", h, p=trial.suggest_float(f"rate_{block}", 0.0, 0.5))
    if trial.suggest_categorical("head", ["plain", "smooth"]) == "smooth":
        smoothing = trial.suggest_float("smoothing", 0.0, 0.2)
        graph.output(graph.add("linear", h, features=3))
        return Candidate(graph, {"label_smoothing": smoothing})
    graph.output(graph.add("linear", h, features=3))
    return Candidate(graph)


def test_decisions_of_a_branch_are_found_from_the_decisions_before():
    found = uses(conditional, "blocks", "rate_0", "rate_1", "head")
    assert found == {"blocks": VALUE, "rate_0": (RATE,), "rate_1": (RATE,), "head": VALUE}
    smooth = uses(conditional, "smoothing", closed={"blocks": 1, "head": "smooth"})
    assert smooth["smoothing"] == (Use(UseKind.HYPERPARAMETER, "", "label_smoothing"),)


def dropping(trial, task):
    trial.suggest_float("unused", 0.0, 1.0)
    return small_space(trial, task)


def failing(trial, task):
    trial.suggest_float("rate", 0.0, 0.5)
    raise RuntimeError("broken")


def test_a_decision_that_goes_nowhere_cannot_be_open():
    assert uses(dropping, "unused", "rate") == {"unused": VALUE, "rate": (RATE,)}
    assert uses(failing, "rate") == {"rate": VALUE}


def test_the_space_is_called_once_for_all_its_decisions():
    calls = []

    def counting(trial, task):
        calls.append(1)
        return two_places(trial, task)

    uses(counting, "rate", "rate")
    assert len(calls) == 1


def test_nothing_is_drawn_from_the_trial_or_from_global_generators():
    def drawing(trial, task):
        torch.rand(())
        return small_space(trial, task)

    dry = DryProposals(lambda trial: drawing(trial, blobs()))
    torch.manual_seed(0)
    dry.uses("rate", {})
    after = torch.rand(())
    torch.manual_seed(0)
    assert torch.rand(()) == after


def test_the_error_names_the_decision_that_was_computed_with():
    with pytest.raises(OpenDecisionError) as caught:
        propose(lambda trial: small_space(trial, blobs()), FixedTrial({}), lambda decision: True)
    assert caught.value.decision == "width"


def test_a_trainer_sees_the_uses():
    seen: dict[str, Open] = {}

    def opens(decision):
        seen[decision.name] = decision
        return False

    dry = DryProposals(lambda trial: small_space(trial, blobs()))
    decisions = {"width": 4, "activation": "relu", "rate": 0.2, "lr": 1e-2}
    propose(dry.function, FixedTrial(decisions), opens, uses=dry.uses)
    assert seen["rate"].uses == (RATE,)
    assert seen["width"].is_value
