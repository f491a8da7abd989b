"""A child: an OpenCL kernel that never ends, and the answer from elsewhere. Ends without cleaning.

``python -m tests.runtime.faults.endless [--check-finite]`` prints two lines where all is well. A
driver waits for its kernels when it is unloaded, which is why this is a process of its own.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

import crossdock as xd
from crossdock.devices.opencl_queue import ClQueue

ENDLESS = """
__kernel void endless(volatile __global int *go) { while (go[0] == 0) { } }
"""


def main() -> None:
    """Run twice: with the device that hangs, and without it."""
    b = xd.GraphBuilder()
    x = b.input("x", (64, 64))
    graph = b.build({"y": b.add(b.mul(x, x, label="n0"), x, label="n1")})
    feeds = {"x": np.full((64, 64), 3, np.float32)}
    pins = xd.Constraints(pin={"n0": "opencl:0", "n1": "cpu:0"})
    checked = "--check-finite" in sys.argv
    with xd.compile(
        graph, ["cpu:0", "opencl:0"], constraints=pins, measure=False, check_finite=checked
    ) as session:
        session.run(feeds)
        device: Any = session.devices["opencl:0"]
        program = device.cl.Program(device.context, ENDLESS).build()
        flag = device.cl.Buffer(
            device.context, device.cl.mem_flags.COPY_HOST_PTR, hostbuf=np.zeros(1, np.int32)
        )
        execute = ClQueue.execute

        def stuck(queue: ClQueue, *args: Any) -> Any:
            program.endless(queue.handle, (1,), None, flag)
            return execute(queue, *args)

        ClQueue.execute = stuck  # type: ignore[method-assign]
        for _ in range(2):
            assert (session.run(feeds)["y"] == 12).all()
            told = session.receipt.recoveries
            sys.stdout.write(f"{[one.error for one in told]} {sorted(session.devices)}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
