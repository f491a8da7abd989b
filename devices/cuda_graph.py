"""Consecutive kernel launches of a command buffer as a CUDA graph: captured once, then replayed.

Buffers are bound when commands are recorded, so a graph's arguments never change. Array calls are
not captured, and neither is what is bound anew: they part the launches into segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from crossdock.devices.cuda_memory import STICKY
from crossdock.devices.replay import graphs
from crossdock.runtime.errors import DeviceError, DeviceLost

Call = Callable[[], Any]


class Segment:
    """Launches in order. The first run makes them one by one, which loads what loads late.

    ``reason`` says why they are not replayed, where the driver refused; they go on one by one.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = tuple(calls)
        self.reason = ""
        self._graph: Any = None
        self._ran = False

    @property
    def replayed(self) -> bool:
        """True once there is a graph."""
        return self._graph is not None

    def run(self, cp: Any, stream: Any) -> None:
        """Put the launches on the stream, which has to be the current one."""
        if self._graph is None and self._ran and not self.reason:
            self._graph = self._captured(cp, stream)
        self._ran = True
        if self._graph is not None:
            self._graph.launch(stream)
            return
        for call in self.calls:
            call()

    def _captured(self, cp: Any, stream: Any) -> Any:
        """The graph of the launches; None, with the reason, where the driver refuses one.

        Only this thread's calls count: other threads allocate and wait meanwhile.
        """
        errors = (cp.cuda.runtime.CUDARuntimeError, cp.cuda.driver.CUDADriverError)
        try:
            stream.begin_capture(cp.cuda.runtime.streamCaptureModeThreadLocal)
            try:
                for call in self.calls:
                    call()
            finally:
                graph = stream.end_capture()
        except errors as error:
            if error.status in STICKY:
                raise
            self.reason = f"no CUDA graph of {len(self.calls)} launches: {error}"
            return None
        except DeviceError as error:
            if isinstance(error, DeviceLost):
                raise
            self.reason = f"no CUDA graph of {len(self.calls)} launches: {error}"
            return None
        return graph


def segments(calls: Sequence[Call], launches: Sequence[bool]) -> list[Segment | Call]:
    """The calls in order, with neighbouring launches put together."""
    found: list[Segment | Call] = []
    done = 0
    for part in graphs(launches):
        found += calls[done : part.start]
        found.append(Segment(calls[part.start : part.stop]))
        done = part.stop
    return [*found, *calls[done:]]
