"""Our own tables, next to Optuna's: slots, leases, evaluations, functions and reports.

The public names of this package are those in `automl.__all__`; all others may change.
"""
