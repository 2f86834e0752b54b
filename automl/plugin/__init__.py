"""Plugins: their protocols, discovery, loading, approval and options.

The public names of this package are in `automl.__all__`; all others may change.
"""
