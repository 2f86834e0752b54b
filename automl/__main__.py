"""`python -m automl` is `automl`."""

from automl.cli import main

main()
