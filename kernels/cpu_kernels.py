"""Kernel candidates for the host processor; importing this module registers them."""

from __future__ import annotations

from crossdock.kernels import (
    cpu_attention,
    cpu_conv,
    cpu_conv_small,
    cpu_conv_transpose,
    cpu_copy,
    cpu_dense,
    cpu_depthwise,
    cpu_elementwise,
    cpu_gemm_dots,
    cpu_lrn,
    cpu_lstm,
    cpu_matmul,
    cpu_norm,
    cpu_pool,
    cpu_reduce,
    cpu_resample,
    cpu_window,
    cpu_winograd,
)

__all__ = [
    "cpu_attention",
    "cpu_conv",
    "cpu_conv_small",
    "cpu_conv_transpose",
    "cpu_copy",
    "cpu_dense",
    "cpu_depthwise",
    "cpu_elementwise",
    "cpu_gemm_dots",
    "cpu_lrn",
    "cpu_lstm",
    "cpu_matmul",
    "cpu_norm",
    "cpu_pool",
    "cpu_reduce",
    "cpu_resample",
    "cpu_window",
    "cpu_winograd",
]
