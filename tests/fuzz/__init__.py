"""Bytes at random for everything that reads bytes from outside; ``python -m tests.fuzz``."""
