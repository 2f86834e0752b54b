"""What plugins promise, and how they are found, loaded, trusted and given options.

The public names of this package are those in `automl.__all__`; all others may change.
"""
