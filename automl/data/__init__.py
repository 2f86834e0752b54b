"""Tasks made from arrays and from tables of text.

The public names of this package are in `automl.__all__`; all others may change.
"""
