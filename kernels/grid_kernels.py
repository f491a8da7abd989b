"""Kernel texts for OpenCL and CUDA grids; importing this module registers the candidates."""

from __future__ import annotations

from crossdock.kernels import (
    grid_conv,
    grid_conv_transpose,
    grid_depthwise,
    grid_direct,
    grid_elementwise,
    grid_fused_conv,
    grid_gather,
    grid_matmul,
    grid_move,
    grid_normalize,
    grid_order,
    grid_pad,
    grid_pool,
    grid_recurrent,
    grid_reduce,
    grid_resample,
    grid_scan,
    grid_scatter,
)

__all__ = [
    "grid_conv",
    "grid_conv_transpose",
    "grid_depthwise",
    "grid_direct",
    "grid_elementwise",
    "grid_fused_conv",
    "grid_gather",
    "grid_matmul",
    "grid_move",
    "grid_normalize",
    "grid_order",
    "grid_pad",
    "grid_pool",
    "grid_recurrent",
    "grid_reduce",
    "grid_resample",
    "grid_scan",
    "grid_scatter",
]
