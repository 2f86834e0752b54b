"""Candidates: what a space may return, and what is checked when it is built."""

import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn
from toys import blobs, small_space

from automl import Candidate, CandidateError, Graph, Signature
from automl.space.candidate import propose

SIGNATURE = Signature((3,), (2,))
PROBE = torch.zeros(5, 3)


def identity_graph():
    graph = Graph()
    graph.output(graph.add("linear", graph.input("x", (3,)), features=2))
    return graph


@pytest.mark.parametrize(
    "made",
    [
        identity_graph(),
        nn.Linear(3, 2),
        Candidate(identity_graph()),
        Candidate(lambda: nn.Linear(3, 2)),
    ],
    ids=["graph", "module", "candidate-of-graph", "candidate-of-function"],
)
def test_a_space_may_return(made):
    module = propose(lambda trial: made, FixedTrial({})).build(PROBE, SIGNATURE)
    assert module(PROBE).shape == (5, 2)
    assert module.training


@pytest.mark.parametrize(("made", "kind"), [(None, "None"), (3, "a int"), (nn.Linear, "a type")])
def test_a_space_may_not_return(made, kind):
    with pytest.raises(CandidateError, match=f"space s returned {kind}; expected a Candidate"):
        propose(lambda trial: made, FixedTrial({}), space="s")


def test_a_candidate_keeps_its_decisions():
    decisions = {"width": 8, "activation": "relu", "rate": 0.2, "lr": 0.01}
    candidate = propose(lambda trial: small_space(trial, blobs()), FixedTrial(decisions))
    assert candidate.decisions == decisions
    assert candidate.hyperparameters == {"lr": 0.01}


def test_an_architecture_must_return_a_module():
    with pytest.raises(CandidateError, match="architecture returned None; expected"):
        Candidate(lambda: None).build()


def test_a_wrong_output_shape_is_named():
    with pytest.raises(CandidateError, match=r"returns shape \(7,\).*expected \(2,\)"):
        Candidate(lambda: nn.Linear(3, 7)).build(PROBE, SIGNATURE)


def test_a_wrong_input_shape_is_named():
    with pytest.raises(CandidateError, match=r"fails on an input of shape \(3,\)"):
        Candidate(lambda: nn.Linear(4, 2)).build(PROBE, SIGNATURE)


def test_checking_leaves_running_statistics_alone():
    module = Candidate(lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))).build(
        PROBE + 1, SIGNATURE
    )
    assert torch.equal(module[0].running_mean, torch.zeros(3))
