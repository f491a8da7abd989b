"""Graphs, loaders, plans, execution and the command line."""
