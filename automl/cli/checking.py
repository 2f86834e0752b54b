"""Runs the conformance suites of `automl.testing` on what a plugin file offers."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from automl import testing
from automl.registry import FACTORY_KINDS, Kind, Offer, Registry

Check = Callable[[], None]


def check_file(file: str) -> int:
    """Check all that a file offers, saying how each went; returns how many failed."""
    registry = Registry()
    failed = 0
    for offer in _offers(registry, file):
        problem = _problem(registry, offer)
        failed += problem is not None
        click.echo(f"{offer.label}: {problem or 'ok'}")
    return failed


def _offers(registry: Registry, file: str) -> Iterator[Offer]:
    if ":" in file:
        yield registry.find(Kind.SPACE, file)
        return
    source = registry.add_file(file)
    found = [
        registry.find(kind, name)
        for kind in FACTORY_KINDS
        for name, owners in registry.names(kind).items()
        if source.path in owners
    ]
    if not found:
        click.echo(f"{file} offers nothing: it needs an @automl.hookimpl, or name FILE:FUNCTION")
    yield from found


def _problem(registry: Registry, offer: Offer) -> str | None:
    try:
        _check(registry, offer)
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        return f"FAILED: {line}"
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
    elif offer.kind is Kind.TRAINER:
        space = registry.build(Kind.SPACE, "mlp", {}).make()
        task = registry.build(Kind.TASK, "digits", {}).make()
        with tempfile.TemporaryDirectory() as directory:
            testing.check_trainer(part.make(), space, task, Path(directory))
