"""What a study shows: overview, HTML page, checks, comparisons and repeated trials.

The public names of this package are those in `automl.__all__`; all others may change.
"""
