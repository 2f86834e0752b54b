"""Which candidates compute the same function: fingerprints and their keys.

The public names of this package are those in `automl.__all__`; all others may change.
"""
