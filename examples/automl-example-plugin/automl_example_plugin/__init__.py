"""Simulated annealing and ConvMixers: a strategy and a search space for automl."""
