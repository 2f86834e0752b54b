"""A user's own code in a trial: its errors, its processes and its time limits.

The public names of this package are those in `automl.__all__`; all others may change.
"""
