"""Kernel candidates for the host processor; importing this module registers them."""

from __future__ import annotations
