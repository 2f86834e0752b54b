"""The command line, with one file per command."""

from automl.cli.main import main

__all__ = ["main"]
