"""Static memory limits that list schedulers and searches respect while they place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossdock.scheduler.problem import Floats, Problem


@dataclass(frozen=True, slots=True)
class Limits:
    """``held`` (n,) bytes a task takes on its device for good, ``room`` (m,) bytes there are."""

    held: Floats
    room: Floats

    @classmethod
    def none(cls, problem: Problem) -> Limits:
        """No limits."""
        return cls(np.zeros(problem.n), np.full(problem.m, np.inf))

    @classmethod
    def parameters(cls, problem: Problem, room: Floats) -> Limits:
        """Only parameters stay; what else is live has to be checked afterwards."""
        return cls(problem.param_bytes, room)

    @classmethod
    def everything(cls, problem: Problem) -> Limits:
        """As if outputs, scratch and received copies stayed for good: always safe."""
        held = problem.param_bytes + problem.out_bytes + problem.scratch_bytes
        np.add.at(held, problem.edge_dst, problem.edge_bytes)
        return cls(held, problem.mem_bytes)
