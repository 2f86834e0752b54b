"""How values read, and secrets kept out of texts.

The public names of this package are those in `automl.__all__`; all others may change.
"""
