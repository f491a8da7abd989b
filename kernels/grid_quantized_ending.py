"""What follows a product of bytes on a grid, as the text that makes a result of an int32 sum.

``FINISHED(total, c)`` is the result of a sum in output channel ``c``; its roundings are those that
the op's definition names, in that order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossdock.devices.program import Argument, In
from crossdock.kernels.grid_common import C_TYPES, f32, operand
from crossdock.kernels.ops_quantized import (
    BIAS,
    BOUNDS,
    OFFSET,
    OUT_ZERO,
    PLAIN,
    SCALE,
    ends,
)
from crossdock.kernels.spec import OpCall

_WHOLE = "12582912.0f"
"""1.5 * 2^23: a smaller float plus this is rounded to a whole number, halves to even."""


@dataclass(frozen=True)
class Ending:
    """``text`` goes before the kernel, ``params`` before its result, ``args`` at their place."""

    text: str
    params: str
    args: tuple[Argument, ...]


def ending(call: OpCall) -> Ending:
    """The ending of a product of bytes, exact or quantised."""
    if call.op not in PLAIN:
        return Ending("#define FINISHED(total, c) (total)\n", "", ())
    named = {"scale": SCALE, "bias": BIAS, "offset": OFFSET, "out_zero": OUT_ZERO}
    there = {n: i for n, i in named.items() if i < len(call.inputs) and call.inputs[i] is not None}
    types = {n: C_TYPES[operand(call, i).dtype] for n, i in there.items()}
    at = {n: "0" if operand(call, i).size == 1 else "c" for n, i in there.items()}
    lines, params = _lines(call, at), [f"CONSTANT {types[n]} *RESTRICT {n}" for n in there]
    args: tuple[Argument, ...] = tuple(In(i) for i in there.values())
    names = list(there)
    if any(call.attrs[name] is not None for name in BOUNDS):
        low, high = ends(*(call.attrs[name] for name in BOUNDS))
        params += ["float low", "float high"]
        names += ["low", "high"]
        args += f32(float(low), float(high))
    result = C_TYPES[call.outputs[0].dtype]
    head = f"DEVICE {result} finished({', '.join(['i32 total', 'i32 c', *params])})"
    body = "".join(f"    {line}\n" for line in lines)
    given = ", ".join(["(total)", "(c)", *names])
    return Ending(
        f"{head} {{\n{body}}}\n#define FINISHED(total, c) finished({given})\n",
        "".join(f"{p}, " for p in params),
        args,
    )


def _lines(call: OpCall, at: dict[str, str]) -> list[str]:
    """The statements of the function; ``at`` is where each parameter that there is lies."""
    lines = []
    if "bias" in at:
        lines.append(f"total = (i32)((u32)total + (u32)bias[{at['bias']}]);")
    lines.append(f"float real = X_MUL((float)total, scale[{at['scale']}]);")
    if "offset" in at:
        lines.append(f"real = real + offset[{at['offset']}];")
    if any(call.attrs[name] is not None for name in BOUNDS):
        lines.append("real = real < low ? low : real > high ? high : real;")
    if "out_zero" not in at:
        return [*lines, "return real;"]
    dtype = call.outputs[0].dtype
    limits = np.iinfo(dtype)
    return [
        *lines,
        "const i32 zero = out_zero[0];",
        f"const float least = (float)({limits.min} - zero), most = (float)({limits.max} - zero);",
        "real = real > least ? real : least;",
        "real = real < most ? real : most;",
        f"return ({C_TYPES[dtype]})((i32)((real + {_WHOLE}) - {_WHOLE}) + zero);",
    ]
