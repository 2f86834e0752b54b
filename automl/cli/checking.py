"""Runs the conformance suites of `automl.testing` on what a plugin file offers."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import optuna

from automl import testing
from automl.cli.text import json_line
from automl.errors import AutoMLError, UsageError
from automl.registry import FACTORY_KINDS, Kind, Offer, Registry

Check = Callable[[], None]


def check_file(file: str, as_json: bool = False) -> int:
    """Check all that a file offers, saying how each went; returns how many failed.

    Raises:
        UsageError: it offers nothing.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    registry = Registry()
    failed = 0
    for offer in _offers(registry, file):
        problem = _problem(registry, offer)
        failed += problem is not None
        event = {"kind": offer.kind.value, "name": offer.name, "ok": not problem, "error": problem}
        line = f"{offer.label}: {f'FAILED: {problem}' if problem else 'ok'}"
        click.echo(json_line(event) if as_json else line)
    return failed


def _offers(registry: Registry, file: str) -> Iterator[Offer]:
    if ":" in file:
        yield _of_its_kind(registry, file)
        return
    source = registry.add_file(file)
    found = [
        registry.find(kind, name)
        for kind in FACTORY_KINDS
        for name, owners in registry.names(kind).items()
        if source.path in owners
    ]
    if not found:
        raise UsageError(
            f"{file} offers nothing: it needs an @automl.hookimpl; a plain function is checked as "
            f"{file}:FUNCTION"
        )
    yield from found


def _of_its_kind(registry: Registry, reference: str) -> Offer:
    """What a function or class offers, by what it makes: a space where it makes nothing else."""
    for kind in FACTORY_KINDS:
        offer = registry.find(kind, reference)
        try:
            offer.build({}).make(seed=0)
        except AutoMLError:
            continue
        return offer
    return registry.find(Kind.SPACE, reference)


def _problem(registry: Registry, offer: Offer) -> str | None:
    try:
        _check(registry, offer)
    except Exception as error:
        line = " ".join(str(error).split())
        known = line and isinstance(error, AutoMLError | AssertionError)
        return line if known else f"{type(error).__name__}: {line}"
    return None


def _check(registry: Registry, offer: Offer) -> None:
    part = offer.build({})
    if offer.kind is Kind.STRATEGY:
        testing.check_strategy(lambda seed: part.make(seed=seed))
    elif offer.kind is Kind.PRUNER:
        testing.check_pruner(part.make)
    elif offer.kind is Kind.TASK:
        testing.check_task(part.make())
    elif offer.kind is Kind.SPACE:
        testing.check_space(part.make(), registry.build(Kind.TASK, "digits", {}).make())
    elif offer.kind is Kind.LAUNCHER:
        with tempfile.TemporaryDirectory() as directory:
            testing.check_launcher(part.make(), Path(directory))
    elif offer.kind is Kind.TRAINER:
        space = registry.build(Kind.SPACE, "mlp", {}).make()
        task = registry.build(Kind.TASK, "digits", {}).make()
        with tempfile.TemporaryDirectory() as directory:
            testing.check_trainer(part.make(), space, task, Path(directory))
