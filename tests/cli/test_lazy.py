"""Help is there at once: it loads no heavy library."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "optuna", "sqlalchemy", "networkx", "sklearn", "numpy", "rich")
AS_COMMAND = "from automl.cli import main"
AS_MODULE = "import runpy; main = lambda: runpy.run_module('automl', run_name='__main__')"


@pytest.mark.parametrize("way", [AS_COMMAND, AS_MODULE], ids=["automl", "python -m automl"])
def test_help_loads_nothing_heavy(way):
    code = f"""
import sys
{way}
sys.argv = ["automl", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: automl" in done.stdout
    for command in ("search", "resume", "worker", "studies", "show", "best", "cache", "plugins"):
        assert f"  {command} " in done.stdout
