"""Formatting of values for people, and redaction of secrets.

The public names of this package are those in `automl.__all__`; all others may change.
"""
