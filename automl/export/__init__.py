"""A trial's model as a directory that predicts without this package.

The public names of this package are those in `automl.__all__`; all others may change.
"""
