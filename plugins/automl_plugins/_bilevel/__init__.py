"""Hypergradients and outer steps, shared by the trainers that tune by gradient."""
