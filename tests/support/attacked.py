"""The space of all sides of all pairs of attacks, loaded as a user's file."""

from attacks import SIDES

from automl import Candidate


def sides(trial, task):
    return Candidate(SIDES[trial.suggest_categorical("side", list(SIDES))])
