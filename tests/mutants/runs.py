"""Guards of runs: many callers, callers that give up, forks, ends, and what is left behind."""

from __future__ import annotations

from tests.mutants.kit import Mutant

LIFE = "tests/runtime/test_executor_life.py"
POOL = "tests/runtime/test_executor_pool.py"
SHORT = "tests/soak/test_short.py"
WAITING = "tests/runtime/test_waiting.py"
ASYNC = "tests/runtime/test_session_async.py"
TURNS = "tests/runtime/test_turns.py"
LIMITS = "tests/runtime/test_limits.py"

MUTANTS = [
    # --- many callers ---
    Mutant(
        "threads",
        "an instance is given to two runs",
        "runtime/pool.py",
        "                instance = self.free.pop()\n            return instance",
        "                instance = self.free[-1]\n            return instance",
        (f"{SHORT}::test_sixteen_threads_get_the_bits_of_one",),
    ),
    Mutant(
        "threads",
        "outputs are those of the instance",
        "runtime/executor.py",
        "        return np.array(made[name]) if name in made else",
        "        return made[name] if name in made else",
        (
            "tests/runtime/test_session_edges.py::test_outputs_are_the_callers_own",
            f"{SHORT}::test_sixteen_threads_get_the_bits_of_one",
        ),
    ),
    Mutant(
        "threads",
        "runs are posted in any order",
        "runtime/queued.py",
        "            with _POST:\n",
        "            if True:\n",
        (f"{LIFE}::test_sessions_in_opposite_directions_never_lock_each_other",),
    ),
    Mutant(
        "threads",
        "a run does not wait for another queue",
        "runtime/queued.py",
        "                waits = self._waits(part) if part.waits else ()\n",
        "                waits = ()\n",
        ("tests/runtime/test_executor.py", LIFE, f"{SHORT}::test_runs_leave_nothing_behind"),
    ),
    Mutant(
        "threads",
        "as many runs wait as come",
        "runtime/background.py",
        "        return len(self._jobs) + self._busy >= most\n",
        "        return False\n",
        (WAITING,),
    ),
    Mutant(
        "threads",
        "a failure wakes nobody",
        "runtime/queued.py",
        "        for timeline in self._timelines.values():\n            timeline.fail(error)\n",
        "",
        ("tests/runtime/test_executor_faults.py", "tests/runtime/faults/test_recovery.py"),
    ),
    # --- callers that give up ---
    Mutant(
        "cancel",
        "the deadline is not looked at",
        "runtime/pool.py",
        "            if self.cancelled or JOBS.ending or (left is not None and left <= TURN):\n",
        "            if self.cancelled or JOBS.ending:\n",
        (f"{LIFE}::test_a_run_out_of_time_leaves_its_memory_to_the_worker",),
    ),
    Mutant(
        "cancel",
        "a wait does not end where the caller gives up",
        "runtime/pool.py",
        "            if self.cancelled or JOBS.ending or (left is not None and left <= TURN):\n",
        "            if JOBS.ending or (left is not None and left <= TURN):\n",
        (f"{LIFE}::test_a_wait_ends_where_its_caller_gives_up",),
    ),
    Mutant(
        "cancel",
        "who gives up wakes nobody",
        "runtime/pool.py",
        "        if self.wake is not None:\n            self.wake()\n",
        "",
        (LIFE, ASYNC, f"{SHORT}::test_callers_who_give_up_are_free_at_once"),
    ),
    Mutant(
        "cancel",
        "the host goes on with a run given up",
        "runtime/executor.py",
        "            commands.stop(on)\n",
        "            pass\n",
        (f"{LIFE}::test_the_host_stops_between_the_steps_of_a_run_given_up",),
    ),
    Mutant(
        "cancel",
        "a run given up goes on to its end",
        "runtime/executor.py",
        "        if self.cancelled:\n            raise Cancelled",
        "        if False:\n            raise Cancelled",
        (f"{LIFE}::test_a_run_given_up_begins_nothing_more",),
    ),
    Mutant(
        "cancel",
        "the memory of a run given up is used again at once",
        "runtime/queued.py",
        "        except BaseException:\n            if not self._abandon():\n                self._release()\n            raise\n",
        "        except BaseException:\n            self._release()\n            raise\n",
        (f"{LIFE}::test_an_interrupted_run_leaves_its_memory_to_the_worker",),
    ),
    Mutant(
        "cancel",
        "an instance given up never comes back",
        "runtime/queued.py",
        "        if release:\n            self._stop(on=False)\n            self._release()\n",
        "",
        (LIFE, f"{SHORT}::test_callers_who_give_up_are_free_at_once"),
    ),
    Mutant(
        "cancel",
        "a future that is cancelled runs all the same",
        "runtime/submitted.py",
        "    if not future.set_running_or_notify_cancel():\n        return\n",
        "    future.set_running_or_notify_cancel()\n",
        (f"{LIFE}::test_a_job_that_is_begun_as_its_future_is_cancelled_runs_nothing",),
    ),
    Mutant(
        "cancel",
        "waits are long",
        "runtime/pool.py",
        "            if done(TURN if left is None else min(TURN, left)):\n",
        "            if done(3600.0 if left is None else left):\n",
        (f"{LIFE}::test_waits_are_in_short_turns",),
    ),
    Mutant(
        "cancel",
        "a deadline is not looked at while a run recovers",
        "runtime/recovery.py",
        "        if self._deadline.over():\n",
        "        if False:\n",
        (
            "tests/runtime/faults/test_recovery.py::test_nothing_is_planned_for_a_caller_who_waits_no_more",
        ),
    ),
    # --- forks ---
    Mutant(
        "fork",
        "a child does not know that it is one",
        "devices/registry.py",
        "        JOBS.fork()\n",
        "        pass\n",
        (f"{LIFE}::test_a_forked_child_is_told_and_its_parent_goes_on",),
    ),
    Mutant(
        "fork",
        "a child may run a session",
        "runtime/repertoire.py",
        '        if JOBS.forked:\n            raise no_more(f"session of',
        '        if False:\n            raise no_more(f"session of',
        (f"{LIFE}::test_a_forked_child_is_told_and_its_parent_goes_on",),
    ),
    Mutant(
        "fork",
        "a child may open devices",
        "devices/registry.py",
        "    if JOBS.forked:\n",
        "    if False:\n",
        (f"{LIFE}::test_a_forked_child_is_told_and_its_parent_goes_on",),
    ),
    Mutant(
        "fork",
        "a child holds on to the workers of its parent",
        "devices/isolated_process.py",
        "        process.let_go()\n",
        "        pass\n",
        ("tests/devices/test_isolated.py::test_a_forked_child_does_not_keep_a_process_alive",),
    ),
    # --- ends ---
    Mutant(
        "exit",
        "the end does not wait for jobs",
        "devices/worker.py",
        "            self._changed.wait_for(lambda: self._running == 0, EXIT_SECONDS)\n",
        "            pass\n",
        (
            f"{LIFE}::test_a_process_ends_at_once_with_work_in_flight",
            f"{SHORT}::test_processes_end_with_work_in_flight",
        ),
    ),
    Mutant(
        "exit",
        "jobs do not know of the end",
        "devices/worker.py",
        "        self.ending = True\n        with self._changed:\n            self._changed.wait_for(",
        "        with self._changed:\n            self._changed.wait_for(",
        (
            f"{LIFE}::test_a_process_ends_at_once_with_work_in_flight",
            f"{SHORT}::test_processes_end_with_work_in_flight",
        ),
    ),
    Mutant(
        "exit",
        "the end waits for ever",
        "devices/worker.py",
        "            self._changed.wait_for(lambda: self._running == 0, EXIT_SECONDS)\n",
        "            self._changed.wait_for(lambda: self._running == 0)\n",
        (
            f"{LIFE}::test_a_process_ends_at_once_with_work_in_flight",
            f"{SHORT}::test_processes_end_with_work_in_flight",
        ),
    ),
    Mutant(
        "exit",
        "threads of queues keep the process",
        "devices/worker.py",
        "name=self._name, daemon=True)",
        "name=self._name, daemon=False)",
        (
            f"{LIFE}::test_a_process_ends_at_once_with_work_in_flight",
            f"{SHORT}::test_processes_end_with_work_in_flight",
        ),
    ),
    Mutant(
        "exit",
        "runs go on when the process ends",
        "runtime/executor.py",
        "        if JOBS.ending:\n            raise no_more(what)\n",
        "",
        (
            f"{LIFE}::test_a_process_ends_at_once_with_work_in_flight",
            f"{SHORT}::test_processes_end_with_work_in_flight",
        ),
    ),
    # --- leaks ---
    Mutant(
        "leak",
        "a run that has ended is kept",
        "runtime/progress.py",
        "    _ACTIVE.discard(progress)\n",
        "    pass\n",
        (f"{SHORT}::test_runs_leave_nothing_behind", LIFE),
    ),
    Mutant(
        "leak",
        "an instance is not given back",
        "runtime/executor.py",
        "        (discard if spoilt and discard is not None else give_back)()\n",
        "        if spoilt and discard is not None:\n            discard()\n",
        (POOL, LIFE),
    ),
    Mutant(
        "leak",
        "an instance that is discarded counts on",
        "runtime/pool.py",
        '        """Count an instance as gone for good; another may be made in its place."""\n        self._unmake()\n',
        '        """Count an instance as gone for good; another may be made in its place."""\n',
        (POOL, LIFE, "tests/runtime/faults/test_recovery.py"),
    ),
    Mutant(
        "leak",
        "the memory of a device is counted and not given back",
        "devices/share.py",
        "            self.gauge.add(-nbytes)\n",
        "            pass\n",
        ("tests/devices/test_share.py", "tests/devices/test_isolated.py", SHORT),
    ),
    Mutant(
        "leak",
        "a closed session keeps its arenas",
        "runtime/repertoire.py",
        "            self._closed = True\n            self.kept.clear()\n            self.last = None\n",
        "            self._closed = True\n",
        (f"{LIFE}::test_memory_is_given_back_with_the_session", LIFE),
    ),
    Mutant(
        "leak",
        "a file that could not be written is left",
        "runtime/kept.py",
        "        made.unlink(missing_ok=True)\n",
        "        pass\n",
        ("tests/runtime/test_records.py", "tests/devices/test_cpu_cache.py"),
    ),
    Mutant(
        "leak",
        "the descriptor of what is no file is left open",
        "runtime/files.py",
        "        os.close(fd)\n        what = ",
        "        what = ",
        (
            f"{SHORT}::test_loads_and_failed_loads_leave_nothing_behind",
            LIMITS,
            "tests/runtime/loaders/test_content.py",
        ),
    ),
    Mutant(
        "leak",
        "a file of a model stays open with its graph",
        "runtime/loaders/source.py",
        "        weakref.finalize(self, os.close, self._descriptor).atexit = False\n",
        "",
        (f"{SHORT}::test_loads_and_failed_loads_leave_nothing_behind",),
    ),
    Mutant(
        "leak",
        "threads of lost devices stay",
        "devices/registry.py",
        "        found.retire()\n",
        "",
        ("tests/runtime/faults/test_isolated.py::test_killed_at_any_moment_of_a_run",),
    ),
]
