"""Optuna's two unpicklers run code planted in a shared storage only if it is trusted."""

import json
import os
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import redis
import tiny
from databases import database, redis_journal
from optuna.samplers import CmaEsSampler, PartialFixedSampler, RandomSampler
from sqlalchemy import create_engine, make_url, text

import automl
from automl import UsageError
from automl.storage.storage import Storage
from automl.study.study import open_study

TINY = {"task": tiny.Nothing, "trainer": tiny.Steps, "device": "cpu"}
PLUGIN = """
import optuna
from automl import hookimpl


def evolved(*, seed: int | None = None) -> optuna.samplers.BaseSampler:
    return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=1)


def held(*, seed: int | None = None) -> optuna.samplers.BaseSampler:
    return optuna.samplers.PartialFixedSampler({"z": 1}, evolved(seed=seed))


@hookimpl
def register_strategies():
    return {"evolved": evolved, "held": held}
"""


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def plugin(tmp_path) -> str:
    (tmp_path / "cmaes_plugin.py").write_text(PLUGIN)
    return str(tmp_path / "cmaes_plugin.py")


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    with database("postgresql", tmp_path) as url:
        yield url


def plant(url: str, marker: Path) -> None:
    """Plant a state of CMA-ES in an ended trial, as anyone with write access could."""
    study = optuna.load_study(study_name="s", storage=url)
    trial = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))[-1]
    statement = text(
        "INSERT INTO trial_system_attributes (trial_id, key, value_json) "
        "VALUES (:id, 'cma:optimizer:0', :value)"
    )
    state = json.dumps(pickle.dumps(Payload(marker)).hex())
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(statement, {"id": trial._trial_id, "value": state})
    engine.dispose()


def search(url: str, plugin: str, strategy: str, **rest: object) -> None:
    given = {**TINY, "storage": url, "study": "s", "plugins": [plugin], "strategy": strategy}
    automl.search(tiny.plane, **given, trials=3, **rest)


def test_the_payload_runs_if_the_storage_is_trusted(server, plugin, marker):
    search(server, plugin, "evolved", trust_storage=True)
    plant(server, marker)
    automl.resume("s", storage=server, trials=1, trust_storage=True)
    assert marker.exists()


@pytest.mark.parametrize("strategy", ["evolved", "held"])
def test_a_search_by_cmaes_on_a_server_is_refused(server, plugin, strategy):
    with pytest.raises(UsageError, match=r"CMA-ES unpickles .* --trust-storage"):
        search(server, plugin, strategy)
    assert optuna.get_all_study_names(server) == []


@pytest.mark.parametrize("strategy", ["evolved", "held"])
def test_a_planted_state_is_not_unpickled(server, plugin, marker, strategy):
    search(server, plugin, strategy, trust_storage=True)
    plant(server, marker)
    with pytest.raises(UsageError, match=r"CMA-ES unpickles .* --trust-storage"):
        automl.resume("s", storage=server, trials=1)
    study = open_study(Storage(server), "s")
    assert len(study.optuna.trials) == 3
    assert not marker.exists()


def test_a_local_file_is_trusted(sqlite_url, plugin, tmp_path):
    search(sqlite_url, plugin, "evolved")
    journal = f"journal:///{tmp_path / 'a.log'}"
    search(journal, plugin, "evolved", ledger=sqlite_url)
    assert len(open_study(Storage(journal, sqlite_url), "s").optuna.trials) == 3


def test_cmaes_is_found_inside_other_samplers():
    storage = Storage("postgresql://u@h/db")
    plain = RandomSampler()
    assert storage.vetted(plain) is plain
    assert storage.vetted(PartialFixedSampler({}, plain))
    several = PartialFixedSampler({}, plain)
    several.others = {"one": [plain, (CmaEsSampler(),)], "me": several}
    with pytest.raises(UsageError, match="CMA-ES"):
        storage.vetted(several)
    trusting = Storage("postgresql://u@h/db", trusted=True)
    assert trusting.vetted(several) is several


# Redis.
@pytest.fixture
def journal() -> Iterator[str]:
    with redis_journal() as url:
        yield url


def plant_snapshot(url: str, marker: Path) -> None:
    parsed = make_url(url)
    client = redis.Redis.from_url(url.partition("?")[0])
    client.set(f"{parsed.query['prefix']}:snapshot", pickle.dumps(Payload(marker)))
    client.close()


def test_a_planted_snapshot_runs_if_the_journal_is_trusted(journal, sqlite_url, marker):
    plant_snapshot(journal, marker)
    _ = Storage(journal, sqlite_url, trusted=True).trials
    assert marker.exists()


def test_a_planted_snapshot_is_not_unpickled(journal, sqlite_url, marker, monkeypatch):
    given = {"storage": journal, "ledger": sqlite_url, "study": "s", "strategy": "random"}
    automl.search(tiny.plane, **TINY, **given, trials=2, trust_storage=True)
    plant_snapshot(journal, marker)
    monkeypatch.delenv("AUTOML_TRUST_STORAGE", raising=False)
    for act in (
        lambda: automl.search(tiny.plane, **TINY, **{**given, "study": uuid.uuid4().hex}, trials=1),
        lambda: automl.resume("s", storage=journal, ledger=sqlite_url, trials=1),
        lambda: open_study(Storage(journal, sqlite_url), "s"),
    ):
        with pytest.raises(UsageError, match=r"snapshot .* --trust-storage") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert not marker.exists()
