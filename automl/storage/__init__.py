"""Optuna's storage on every backend, and the database of the ledger.

The public names of this package are those in `automl.__all__`; all others may change.
"""
