"""Level L1: canonical keys of graphs.

The public names of this package are those in `automl.__all__`; all others may change.
"""
