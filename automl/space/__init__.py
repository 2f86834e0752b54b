"""The building blocks of a search space: decisions, graphs, layers and candidates.

The public names of this package are in `automl.__all__`; all others may change.
"""
