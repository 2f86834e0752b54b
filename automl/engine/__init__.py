"""The search loop that every worker runs, and all that happens to a trial in it.

The public names of this package are those in `automl.__all__`; all others may change.
"""
