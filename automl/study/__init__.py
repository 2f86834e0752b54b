"""Studies: their requests, plans, creation and opening, and the weights and results they keep.

The public names of this package are those in `automl.__all__`; all others may change.
"""
