"""Level L2: what a candidate computes while it is trained for a few steps.

The public names of this package are those in `automl.__all__`; all others may change.
"""
