"""Differential testing: random graphs, every way to run them, one float64 reference."""
