"""Portfolio of seeds, then iterated greedy and annealing, on the compiled evaluators.

Importing this loads numba; the first call in a process loads (or compiles, once a machine) the
kernels. Results depend on the seed alone when the search is bounded by iterations.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace

import numpy as np

from crossdock.runtime.errors import MemoryBudget
from crossdock.scheduler.compiled_bounds import Bound, graph_bound, window_bounds
from crossdock.scheduler.compiled_core import BIG, Graph, compile_graph, random_state
from crossdock.scheduler.compiled_evaluate import empty_state, load
from crossdock.scheduler.compiled_exact import DONE, FOUND, branch, new_tree
from crossdock.scheduler.compiled_greedy import iterated_greedy, new_base
from crossdock.scheduler.compiled_lists import Partial, empty_partial, look_ahead
from crossdock.scheduler.compiled_moves import Moves, new_moves
from crossdock.scheduler.compiled_ranks import (
    LEAST,
    MEAN,
    MIDDLE,
    OPTIMISTIC,
    mean_link,
    order_by,
    order_by_start,
    ranks,
)
from crossdock.scheduler.compiled_search import anneal
from crossdock.scheduler.compiled_seeds import Sorting, list_seed, new_sorting
from crossdock.scheduler.compiled_state import BEST, State
from crossdock.scheduler.decode import decode
from crossdock.scheduler.drafts import Draft, best_of, freeze
from crossdock.scheduler.labels import cheapest_labels
from crossdock.scheduler.limits import Limits
from crossdock.scheduler.lists import priority_order, upward_ranks
from crossdock.scheduler.mincut import cheapest_pair_labels
from crossdock.scheduler.polish import polish, solver_module
from crossdock.scheduler.problem import DeviceSpec, Ints, LinkSpec, Problem, TaskSpec
from crossdock.scheduler.result import Links, Options, Schedule
from crossdock.scheduler.segments import solve_blocks
from crossdock.scheduler.single import single_drafts, single_placement

LINKS: tuple[Links, ...] = ("free", "serial")
RANK_OF = {MEAN: "heft", LEAST: "least", OPTIMISTIC: "peft"}
KEPT = 4  # single devices that are seeds, and seeds tried where memory is short
NEAR = 1.3  # a seed this much worse than the best is no start
OPTIMAL = 1.0 + 1e-10  # makespan over bound that ends a search: rounding
AHEAD_SHARE = 0.06  # of what is left, up to which look-ahead is tried
BOUND_SHARE = 0.04  # of the budget for windowed bounds
GREEDY = 0.08  # share of the budget for iterated greedy
ROUND_MOVES = 40  # moves that one round of it counts for
SMALL = 64  # tasks below which the search starts hotter and from more seeds
# (seed, share, heat) of annealing runs; -1: the best. Up to EXACT_TASKS, branch and bound
# follows the first.
PLAN_TINY = ((0, 0.4, 1.0), (1, 0.3, 1.0), (-1, 0.3, 0.3))
PLAN_SMALL = ((0, 0.7, 1.0), (-1, 0.3, 0.3))
PLAN = ((0, 0.8, 0.6), (-1, 0.2, 0.2))
COOLING = 15.0  # first over last temperature of an annealing run
COMM = 0.3  # weight of the mean transfer in the temperature scale
EXACT_TASKS = 24  # tasks up to which branch and bound is tried
BLOCK_SHARE = 0.4  # of the budget, at most, where the graph falls apart into small blocks
EXACT_SHARE = 0.5  # of what is left of the budget after the first annealing run
LABEL_WORK = 2e4  # edges times device pairs that labelling may take on a second of budget
RESERVE_S = 2e-4  # of the budget, to turn a solution into a schedule
RESERVE_EACH_S = {"free": 1e-6, "serial": 4e-6}  # the same, for every task and edge
SLICE_S = 0.004  # longest compiled call between looks at the clock


@dataclass(slots=True)
class Solution:
    """A topological order and device vector with its makespan."""

    makespan: float
    order: Ints
    device: Ints
    name: str


class Clock:
    """Budget of a search: wall time until ``until``, or a number of moves."""

    def __init__(self, until: float, iterations: int | None) -> None:
        self.until = until
        self.iterations = iterations
        self.used = 0
        self.rate = 1e5  # moves a second

    def left(self) -> float:
        """Seconds that are left; with iterations, moves at a nominal microsecond each."""
        if self.iterations is not None:
            return max(0, self.iterations - self.used) * 1e-6
        return self.until - time.perf_counter()

    def steps(self, seconds: float) -> int:
        """Moves to make in one compiled call that should take about ``seconds``."""
        if self.iterations is not None:
            return max(1, min(4096, round(seconds * 1e6)))
        return max(1, int(self.rate * min(seconds, SLICE_S)))

    def spent(self, steps: int, seconds: float) -> None:
        """Account for a call."""
        self.used += steps
        self.rate = 0.5 * self.rate + 0.5 * steps / max(seconds, 1e-7)


class Search:
    """One search of one problem under fixed limits; ``run`` gives the best solution.

    Args:
        problem, options: what to schedule and how.
        limits: static memory limits that seeds and moves respect.
        until: clock time to stop at, unless the options count iterations.
    """

    def __init__(self, problem: Problem, options: Options, limits: Limits, until: float) -> None:
        self.problem = problem
        self.clock = Clock(until, options.iterations)
        self.graph: Graph = compile_graph(problem, options.links, limits)
        root = graph_bound(self.graph)
        self.root: Bound = root
        self.bound: float = root.makespan
        self.rng = random_state(options.seed)
        self.seeds: list[Solution] = []
        self.moves: Moves = new_moves(self.graph, self.rng)
        self.state: State = empty_state(self.graph)
        self.partial: Partial = empty_partial(self.graph)
        self.sorting: Sorting = new_sorting(problem.n)
        self.budget = self.clock.left()

    def run(self) -> Solution:
        """Seeds, iterated greedy, annealing.

        Raises:
            MemoryBudget: no seed respects the limits.
        """
        self._list_seeds()
        if not self.seeds or not self.done(min(self.seeds, key=lambda x: x.makespan)):
            self._label_seeds()
        if not self.seeds:
            raise MemoryBudget("no list schedule keeps within the devices' memory")
        self.seeds.sort(key=lambda x: x.makespan)
        self._window_bounds()
        best = self._blocks(self.seeds[0])
        return self._anneal(self._greedy(best))

    def done(self, best: Solution) -> bool:
        """Whether time is up or nothing can be better."""
        return self.clock.left() <= 0.0 or best.makespan <= self.bound * OPTIMAL

    def _add(self, device: Ints, order: Ints, name: str) -> None:
        """Evaluate a seed exactly and keep it."""
        self._keep(self._value(order, device), device, order, name)

    def _keep(self, makespan: float, device: Ints, order: Ints, name: str) -> None:
        if makespan < BIG:
            self.seeds.append(Solution(makespan, order, device, name))

    def _value(self, order: Ints, device: Ints) -> float:
        """Exact makespan; list schedules only estimate it under serial links."""
        return load(self.graph, self.state, order, device)

    def _list_seeds(self) -> None:
        g = self.graph
        for mode, name in RANK_OF.items():
            began = time.perf_counter()
            rank = ranks(g, mode)
            order = order_by(g.net, rank)
            for share in (0.0, 0.5, 1.0):
                found = list_seed(g, self.partial, self.state, self.sorting, order, share)
                label = f"{name}+{share:g}tail" if share else name
                self._keep(found, self.state.best_device.copy(), self.sorting.order.copy(), label)
            took = time.perf_counter() - began
            fan_out = len(g.net.succ) / max(1, self.problem.n)
            ahead = took / 3.0 * (1.0 + self.problem.m * fan_out)
            if self.clock.iterations is not None or ahead < AHEAD_SHARE * self.clock.left():
                self._keep_list(look_ahead(g, self.partial, order, rank), f"{name}+lookahead")
            if self.clock.iterations is None and self.clock.left() < 0.5 * self.budget:
                break
        self._single_seeds(self._rank_order())

    def _rank_order(self) -> Ints:
        return order_by(self.graph.net, ranks(self.graph, MEAN))

    def _keep_list(self, makespan: float, name: str) -> None:
        if makespan < BIG:
            device = self.partial.placed.device.copy()
            order = order_by_start(self.graph, device, self.partial.placed.start)
            self._add(device, order, name)

    def _single_seeds(self, order: Ints) -> None:
        if np.isfinite(self.graph.room).any():
            return
        for d in np.argsort(self.problem.cost.sum(axis=0), kind="stable")[:KEPT].tolist():
            device = single_placement(self.problem, d)
            self._add(device, order, f"best_single:{self.problem.device_ids[d]}")

    def _label_seeds(self) -> None:
        p = self.problem
        if len(p.edge_src) * p.m * p.m > LABEL_WORK * self.clock.left() or not self.seeds:
            return
        if p.m == 2:
            device = cheapest_pair_labels(p)
        else:
            starts = [x.device.tolist() for x in sorted(self.seeds, key=lambda x: x.makespan)[:1]]
            starts += [single_placement(p, d).tolist() for d in range(min(p.m, 3))]
            device = np.array(cheapest_labels(p, starts), np.int64)
        held = np.bincount(device, self.graph.held, minlength=p.m)
        if (held <= self.graph.room).all():
            self._add(device, self._rank_order(), "labels")

    def _greedy(self, seed: Solution) -> Solution:
        """Iterated greedy from the ranks of the best seed's kind."""
        g, clock, best = self.graph, self.clock, seed
        mode = next((m for m, n in RANK_OF.items() if best.name.startswith(n)), MIDDLE)
        rank, bias = ranks(g, mode), np.zeros(g.cost.shape)
        if best.name.endswith("tail"):
            bias = np.minimum(g.tail, BIG) * (0.5 if "0.5" in best.name else 1.0)
        base, partial = new_base(g, rank, bias), self.partial
        stop, rounds = clock.left() - GREEDY * self.budget, 2
        while clock.left() > stop and not self.done(best):
            began, before = time.perf_counter(), float(base.best[0])
            iterated_greedy(g, partial, base, rounds, self.rng)
            each = (time.perf_counter() - began) / rounds
            if base.best[0] < min(before, best.makespan * (1.0 - 1e-12)):
                device = base.best_device.copy()
                order = order_by_start(g, device, base.best_start)
                exact = self._value(order, device)
                if exact < best.makespan * (1.0 - 1e-12):
                    best = Solution(exact, order, device, seed.name + "+greedy")
            clock.used += rounds * ROUND_MOVES
            rounds = 16
            if clock.iterations is None:
                rounds = max(1, int(min(SLICE_S, max(0.0, clock.left() - stop)) / each))
        return best

    def _anneal(self, best: Solution) -> Solution:
        """Annealing runs from the best seeds and then from the best solution."""
        starts = [best] + [
            x for x in self.seeds if x is not best and x.makespan < NEAR * best.makespan
        ]
        n = self.problem.n
        plan = PLAN_TINY if n <= EXACT_TASKS else PLAN_SMALL if n < SMALL else PLAN
        for i, (which, share, heat) in enumerate(plan):
            start = starts[which] if 0 <= which < len(starts) else best
            open_share = sum(x for _, x, _ in plan[i:])
            stop = self.clock.left() * (1.0 - share / open_share)
            best = self._cool(best, start, heat, stop)
            if i == 0 and n <= EXACT_TASKS:
                best = self._exact(best)
        return best

    def _window_bounds(self) -> None:
        """Raise the bound while that is cheap beside the budget."""
        stop = self.clock.left() - BOUND_SHARE * self.budget
        for bound in window_bounds(self.graph, self.root):
            self.bound = bound
            if self.clock.left() < stop or self.done(self.seeds[0]):
                return

    def _blocks(self, best: Solution) -> Solution:
        """Dynamic programming where the graph falls apart into small blocks; raises the bound."""
        share = BLOCK_SHARE * self.clock.left()
        stop = self.clock.left() - share

        def spend(nodes: int) -> bool:
            self.clock.used += nodes
            return self.clock.left() > stop

        if self.done(best):
            return best
        found = solve_blocks(self.problem, spend, share * 1e6)
        if found is None:
            return best
        self.bound = max(self.bound, found.makespan)
        return self._adopt(best, found.device, found.order)

    def _exact(self, best: Solution) -> Solution:
        """Branch and bound for a share of what is left: raises the bound if it ends."""
        g, clock = self.graph, self.clock
        tree = new_tree(g, self.root.head, self.root.weight, best.makespan)
        stop = clock.left() * (1.0 - EXACT_SHARE)
        nodes, found = 256, 0
        while clock.left() > stop and not tree.counts[DONE] and not self.done(best):
            began = time.perf_counter()
            clock.used += branch(g, tree, nodes)
            if clock.iterations is None:
                took = max(time.perf_counter() - began, 1e-7)
                nodes = max(64, int(nodes * min(SLICE_S, clock.left()) / took))
            if tree.counts[FOUND] > found:
                found = int(tree.counts[FOUND])
                best = self._adopt(best, tree.best_device.copy(), tree.best_order.copy())
        if tree.counts[DONE]:
            self.bound = max(self.bound, float(tree.limit[0]))
        return best

    def _adopt(self, best: Solution, device: Ints, order: Ints) -> Solution:
        """The better of ``best`` and an exact method's, under the search's own rules."""
        held = np.bincount(device, self.graph.held, minlength=self.problem.m)
        if (held > self.graph.room).any():
            return best
        makespan = self._value(order, device)
        if makespan >= best.makespan * (1.0 - 1e-12):
            return best
        return Solution(makespan, order, device, "exact")

    def _cool(self, best: Solution, start: Solution, heat: float, stop: float) -> Solution:
        """One annealing run, until ``stop`` seconds are left."""
        g, clock = self.graph, self.clock
        span = clock.left() - stop
        if span <= 0.0 or self.done(best):
            return best
        state = self.state
        load(g, state, start.order, start.device)
        hot = heat * self._scale() / max(best.makespan, 1e-300)
        while not self.done(best):
            at = 1.0 - (clock.left() - stop) / span
            if at >= 1.0:
                break
            steps = clock.steps(min(span / 12.0, clock.left() - stop))
            ahead = min(1.0, at + steps / max(clock.rate * span, 1.0))
            began = time.perf_counter()
            anneal(g, state, self.moves, steps, hot * COOLING**-at, hot * COOLING**-ahead)
            clock.spent(steps, time.perf_counter() - began)
            best = self._improved(state, best, start.name)
        return best

    def _improved(self, state: State, best: Solution, name: str) -> Solution:
        makespan = float(state.value[BEST])
        if makespan >= best.makespan * (1.0 - 1e-12):
            return best
        label = name if name.endswith("+search") else f"{name}+search"
        return Solution(makespan, state.best_order.copy(), state.best_device.copy(), label)

    def _scale(self) -> float:
        """Typical cost of a change: a task's least cost plus a share of a transfer."""
        g = self.graph
        scale = float(g.cost.min(axis=1).mean())
        if len(g.net.pred):
            latency, inv_bw = mean_link(g.wires)
            scale += COMM * (latency + float(g.net.pred_bytes.mean()) * inv_bw)
        return scale


def refine(problem: Problem, options: Options, started: float) -> Schedule:
    """Search ``problem`` within the options' budget, counted from ``started``."""
    if options.polish_s > 0.0:
        solver_module()  # what is missing is said before the search
    each = RESERVE_EACH_S[options.links]
    reserve = RESERVE_S + each * (problem.n + len(problem.edge_src))
    until = started + max(0.0, options.budget_s - reserve)
    bounds: list[float] = []
    moves: list[int] = []

    def make(limits: Limits) -> list[Draft]:
        search = Search(problem, options, limits, until)
        best = search.run()
        bounds.append(search.bound)
        moves.append(search.clock.used)
        drafts = sorted(search.seeds, key=lambda x: x.makespan) if options.memory else []
        return [as_draft(problem, options, x) for x in (best, *drafts[:KEPT])]

    draft = best_of(problem, options, make)
    single = {
        d: float(s) for d, s in zip(problem.device_ids, problem.cost.sum(axis=0), strict=True)
    }
    if not np.isfinite(problem.cost).all():
        order = order_of(problem)
        drafts = single_drafts(problem, options.links, order)
        single = {name: x.makespan for name, x in drafts.items()}
        if not options.memory:
            draft = min([draft, *drafts.values()], key=lambda x: x.makespan)
    bound = max(bounds, default=None)  # none where only a packing fits
    if options.polish_s > 0.0 and bound is not None and draft.makespan > bound * OPTIMAL:
        draft, bound = polish(problem, options, draft, bound)
    stats = {"moves": float(sum(moves)), "seconds": time.perf_counter() - started}
    named = replace(draft, name=f"auto:{draft.name}")
    return freeze(problem, options.links, named, bound=bound, single=single, stats=stats)


def as_draft(problem: Problem, options: Options, found: Solution) -> Draft:
    """Times of a solution, in plain Python: what is reported does not rest on compiled code."""
    return Draft(
        found.name, found.device, decode(problem, found.order, found.device, options.links)
    )


def order_of(problem: Problem) -> Ints:
    """HEFT's order of the tasks, int64 (n,)."""
    return priority_order(problem, upward_ranks(problem))


@functools.cache
def warm_up() -> None:
    """Load or compile every kernel, for both link models; at once where they are loaded."""
    problem = Problem.build(
        [TaskSpec(str(i), [1.0, 1.0]) for i in range(7)],
        [(0, 1, 1.0), (0, 2, 1.0), (1, 3, 1.0), (2, 3, 1.0)],
        [DeviceSpec("a"), DeviceSpec("b")],
        [LinkSpec("a", "b", 0.1, 10.0, both=True)],
    )
    for links in LINKS:
        Search(problem, Options(links=links, iterations=400), Limits.none(problem), 0.0).run()
