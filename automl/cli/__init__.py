"""The command line; one file a command."""

from automl.cli.main import main

__all__ = ["main"]
