"""Where a space takes its decisions, found by proposing with everything open."""

import logging

import optuna
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


@pytest.mark.filterwarnings("error")
def test_nothing_is_announced(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    with caplog.at_level(logging.INFO, "optuna"):
        optuna.create_study()
        assert (announced := len(caplog.records))
        uses(small_space, "width", "rate")
    assert len(caplog.records) == announced


def test_what_is_not_given_has_the_first_choice_or_the_largest_value():
    seen = []

    def space(trial, task):
        kind = trial.suggest_categorical("kind", ["a", "b"])
        count = trial.suggest_int("count", 1, 10, step=3)
        share = trial.suggest_float("share", 0, 0.75, step=0.25)
        sizes = [2.0**count * share, len(kind)]
        seen.append((kind, count, share, trial.suggest_int("count", 1, 31, step=3)))
        return Candidate(nn.Identity, {"sizes": sizes})

    uses(space, "count")
    uses(space, "share", closed={"kind": "b", "count": 4})
    assert seen == [("a", 10, 0.75, 10), ("b", 4, 0.75, 4)]


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


def proposed(dry, decisions, wanted):
    def opens(decision):
        return decision.name == wanted and not decision.is_value

    def once(opens, uses):
        return propose(dry.function, FixedTrial(decisions), opens, uses=uses)

    return dry.propose(once, opens)


def picky(trial, task):
    """Fails for some values, whatever is open."""
    width = trial.suggest_int("width", 4, 8)
    rate = trial.suggest_float("rate", 0.0, 0.5)
    if int(width) % 2:
        raise ValueError("odd")
    graph = Graph()
    h = graph.add("dropout", graph.input("x", (4,)), p=rate)
    graph.output(graph.add("linear", graph.add("linear", h, features=width), features=3))
    return Candidate(graph)


def test_a_candidate_that_fails_says_nothing_about_others():
    dry = DryProposals(lambda trial: picky(trial, blobs()))
    assert dry.uses("rate", {"width": 5}) == VALUE
    assert dry.uses("rate", {"width": 4}) == (RATE,)


class Stateful:
    """A space that keeps its trial in an attribute, which a call within a call would replace."""

    def candidate(self, trial):
        self.trial = trial
        lr = self.trial.suggest_float("lr", 1e-4, 1e-1)
        rate = self.trial.suggest_float("rate", 0.0, 0.5)
        width = self.trial.suggest_int("width", 4, 8)
        graph = Graph()
        h = graph.add("dropout", graph.input("x", (4,)), p=rate)
        graph.output(graph.add("linear", graph.add("linear", h, features=int(width)), features=3))
        return Candidate(graph, {"lr": lr})


def test_the_space_is_never_called_within_a_call():
    decisions = {"lr": 1e-2, "width": 5}
    candidate = proposed(DryProposals(Stateful().candidate), decisions, "rate")
    assert candidate.decisions == decisions
    assert list(candidate.open_decisions) == ["rate"]
    assert candidate.architecture.node("linear").shape == (5,)


def of_two_minds(trial, task):
    """Computes with the rate in one branch only."""
    kind = trial.suggest_categorical("kind", ["dropout", "width"])
    rate = trial.suggest_float("rate", 0.1, 0.5)
    graph = Graph()
    h = graph.input("x", (4,))
    if kind == "dropout":
        h = graph.add("dropout", h, p=rate)
    else:
        h = graph.add("linear", h, features=round(20 * float(rate)))
    graph.output(graph.add("linear", h, features=3))
    return Candidate(graph)


def test_a_decision_is_closed_for_a_candidate_that_computes_with_it():
    dry = DryProposals(lambda trial: of_two_minds(trial, blobs()))
    opened = proposed(dry, {"kind": "dropout"}, "rate")
    assert list(opened.open_decisions) == ["rate"]
    closed = proposed(dry, {"kind": "width", "rate": 0.2}, "rate")
    assert closed.decisions == {"kind": "width", "rate": 0.2}
    assert not closed.open_decisions


def test_a_space_that_fails_by_itself_says_so():
    dry = DryProposals(lambda trial: failing(trial, blobs()))
    with pytest.raises(RuntimeError, match="broken"):
        proposed(dry, {"rate": 0.2}, "rate")
