"""The search loop that every worker runs, and everything that happens to a trial in it.

The public names of this package are those in `automl.__all__`; all others may change.
"""
