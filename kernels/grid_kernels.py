"""Kernel texts for OpenCL and CUDA grids; importing this module registers the candidates."""

from __future__ import annotations

from crossdock.kernels import grid_elementwise, grid_matmul, grid_move, grid_pad

__all__ = ["grid_elementwise", "grid_matmul", "grid_move", "grid_pad"]
