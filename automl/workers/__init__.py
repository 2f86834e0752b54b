"""Processes that work on a study: their start, supervision and signals.

The public names of this package are those in `automl.__all__`; all others may change.
"""
