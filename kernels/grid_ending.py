"""What follows a convolution, as part of the text that stores its results."""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Slot
from crossdock.kernels.fused_conv import body_of, residual_of
from crossdock.kernels.grid_common import on_cpu
from crossdock.kernels.grid_emit import Value, emit, steps_of
from crossdock.kernels.spec import OpCall


@dataclass(frozen=True)
class Ending:
    """The elementwise steps of a ``fused_conv2d`` on float32; none of a plain convolution.

    A text calls ``DONE(value, at)`` for the result at an index, and has ``@RESIDUAL@`` before the
    parameter of its results; the kernel's argument there is ``residual``, where there is one.
    """

    text: str
    residual: Slot | None

    def into(self, text: str) -> str:
        """A kernel text with this ending."""
        parameter = "CONSTANT float *RESTRICT residual," if self.residual else ""
        return self.text + text.replace("@RESIDUAL@", parameter)


PLAIN = Ending("#define DONE(v, at) (v)\n", None)


def ending(call: OpCall, device: DeviceInfo) -> Ending:
    """The ending of a convolution, fused or plain."""
    body = body_of(call)
    if body is None:
        return PLAIN
    beside = residual_of(call) is not None
    values = [Value("x0", "f32"), Value("x1", "f32")][: 1 + beside]
    made = emit(steps_of(body), values, cpu=on_cpu(device))
    params = ", ".join(f"float {v.text}" for v in values)
    lines = "\n    ".join((*made.lines, f"return {made.result.text};"))
    given = ", residual[at]" if beside else ""
    return Ending(
        f"{made.helpers}DEVICE float done({params}) {{\n    {lines}\n}}\n"
        f"#define DONE(v, at) done((v){given})\n",
        In(3) if beside else None,
    )
