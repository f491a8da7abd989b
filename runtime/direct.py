"""Runs of a program that stays on the host, in the calling thread, as cheap as Python allows.

Everything that a run looks up is looked up before the first; no lock is taken. A run that is out of
the ordinary (feeds to be converted or refused, no free instance) is left to the long way.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from numpy import ndarray

from crossdock.devices.worker import JOBS
from crossdock.runtime.errors import Cancelled, Error
from crossdock.runtime.executor import failed
from crossdock.runtime.graph import Graph
from crossdock.runtime.losses import blame
from crossdock.runtime.lower import Program
from crossdock.runtime.plan import HOST
from crossdock.runtime.pool import Pool


class Direct:
    """Runs a program that ``suits``; safe for threads."""

    def __init__(self, program: Program, pool: Pool) -> None:
        self._program, self._pool, self._free = program, pool, pool.free
        self._inputs = len(program.graph.inputs)

    @staticmethod
    def suits(graph: Graph, program: Program) -> bool:
        """Whether a program keeps to the host, and is fed and read as its caller's graph is."""
        windows = program.windows
        same = dict(graph.inputs) == dict(program.graph.inputs)
        return program.host_only and same and not (windows.inputs or windows.outputs)

    def run(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], float] | None:
        """The outputs and the seconds from feeding to outputs; None where it takes the long way.

        Raises:
            ExecutionError: a step failed.
            Cancelled: the process is ending.
        """
        if feeds.__class__ is not dict or len(feeds) != self._inputs:
            return None
        try:
            instance = self._free.pop()
        except IndexError:
            return None
        try:
            began = perf_counter()
            for name, dims, dtype, target in instance.wanted:
                array = feeds.get(name)
                if array.__class__ is not ndarray or array.shape != dims or array.dtype != dtype:
                    return None
                target[...] = array
            if JOBS.ending:
                raise Cancelled(f"run of {self._program.graph.name!r} was cancelled")
            for call in instance.calls:
                call()
            outputs = {name: made.copy() for name, made in instance.outputs.items()}
            return outputs, perf_counter() - began
        except Error as error:
            blame(error, self._program.devices[HOST])
            raise
        except Exception as error:
            raise failed(self._program, error) from error
        finally:
            self._free.append(instance)
            if self._pool.waiting:
                self._pool.tell()
