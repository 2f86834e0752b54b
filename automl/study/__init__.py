"""Studies: what is asked for, how it is planned, created and opened, and what is kept.

The public names of this package are those in `automl.__all__`; all others may change.
"""
