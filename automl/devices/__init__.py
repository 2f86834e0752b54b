"""The GPUs of this machine, and where workers run on them.

The public names of this package are those in `automl.__all__`; all others may change.
"""
