"""Run each op of a model on the device where it finishes first."""

__version__ = "0.1.0.dev0"
