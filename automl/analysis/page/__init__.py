"""A study as one HTML page.

The public names of this package are those in `automl.__all__`; all others may change.
"""
