"""What a search space is written in: decisions, graphs, layers and candidates.

The public names of this package are those in `automl.__all__`; all others may change.
"""
