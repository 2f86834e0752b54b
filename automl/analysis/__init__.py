"""Views of a study: overview, HTML page, checks, comparisons and repeated trials.

The public names of this package are those in `automl.__all__`; all others may change.
"""
