"""Each command line test has its own directory, where the default storage is empty."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Ended, in_process


@pytest.fixture(autouse=True)
def here(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, same_logging: None
) -> Path:
    """The user's working directory; the environment sets no options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("AUTOML_STORAGE", "AUTOML_DATA_DIR", "AUTOML_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(prepared, tmp_path / "automl.db")
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command line in this process."""
    return lambda *arguments: in_process(capsys, arguments)
