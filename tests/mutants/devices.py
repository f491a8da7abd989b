"""Guards against devices that fail, hang, lie or die."""

from __future__ import annotations

from tests.mutants.kit import Mutant

FAULTS = "tests/runtime/faults"
RECOVERY = f"{FAULTS}/test_recovery.py"
MEMORY = f"{FAULTS}/test_memory.py"
CHECKS = f"{FAULTS}/test_checks.py"
EXHAUSTIVE = f"{FAULTS}/test_exhaustive.py"
RUNS = "tests/runtime/test_executor_faults.py"
OF_FAULTS = "tests/devices/test_faults.py"
FALLBACK = "tests/runtime/test_fallback.py"
ISOLATED = "tests/devices/test_isolated.py"
ISOLATED_RUNS = f"{FAULTS}/test_isolated.py"

FLEET = "runtime/fleet.py"
LOSSES = "runtime/losses.py"
REGISTRY = "devices/registry.py"
LINEAGE = "runtime/lineage.py"
COPIES = "runtime/copies.py"
PROCESS = "devices/isolated_process.py"
ISOLATED_DEVICE = "devices/isolated_device.py"

MUTANTS = [
    # --- out of memory ---
    Mutant(
        "memory",
        "more is allocated than is free",
        "devices/share.py",
        "        if nbytes > free:\n",
        "        if False:\n",
        ("tests/devices/test_share.py", MEMORY),
    ),
    Mutant(
        "memory",
        "caches are not freed",
        FLEET,
        "            free_caches()\n",
        "",
        (f"{MEMORY}::test_instances_that_no_run_uses_are_given_up_for_another_session",),
    ),
    Mutant(
        "memory",
        "nothing is planned within less",
        FLEET,
        "                self._budgets[device] = _observed(error, self.devices[device].info)\n",
        "                self._budgets[device] = self.devices[device].info.memory_bytes\n",
        (f"{MEMORY}::test_less_memory_than_was_said_is_planned_for",),
    ),
    Mutant(
        "memory",
        "a device with too little is not left out",
        FLEET,
        "        if step == 2 and device != HOST:\n",
        "        if False:\n",
        (f"{MEMORY}::test_a_device_that_never_has_memory_is_left_out_step_by_step",),
    ),
    Mutant(
        "memory",
        "a device is left out for good",
        FLEET,
        "            if not isinstance(error, OutOfMemory) or error.device not in self.devices:\n"
        "                return\n",
        "            return\n",
        (f"{MEMORY}::test_with_nowhere_to_go_the_refusal_has_the_numbers",),
    ),
    Mutant(
        "memory",
        "lack of memory counts as a loss",
        LOSSES,
        "_NO_LOSS = (OutOfMemory, CompileError,",
        "_NO_LOSS = (CompileError,",
        (f"{MEMORY}::test_a_passing_lack_of_memory_frees_caches_and_tries_again",),
    ),
    Mutant(
        "memory",
        "the host's MemoryError reaches the caller",
        "runtime/session.py",
        '        except MemoryError as error:\n            raise no_memory(self.graph, "run") from error\n',
        "        except KeyboardInterrupt:\n            raise\n",
        ("tests/runtime/test_errors.py::test_a_host_without_memory_is_told_in_a_word_of_ours",),
    ),
    Mutant(
        "memory",
        "an allocation that fails is still counted",
        "runtime/pool.py",
        "                if not self._unmake():\n                    raise\n",
        "                if self._made == 1:\n                    raise\n",
        ("tests/runtime/test_executor_life.py::test_runs_wait_where_the_device_has_room_for_one",),
    ),
    # --- kernels that do not build ---
    Mutant(
        "build",
        "a kernel that did not build is chosen again",
        "runtime/binding.py",
        "        refuse(mark, Refused(device.info.id, kernel.name, str(error), error.log))\n",
        "",
        (f"{FAULTS}/test_build.py::test_the_next_candidate_runs_and_the_log_is_kept",),
    ),
    Mutant(
        "build",
        "the compiler's log is lost",
        FLEET,
        '                log = error.log if isinstance(error, CompileError) else ""\n',
        '                log = ""\n',
        (f"{FAULTS}/test_build.py::test_the_next_candidate_runs_and_the_log_is_kept",),
    ),
    Mutant(
        "build",
        "a device whose kernels fail again is tried on",
        FLEET,
        '        self.leave_out(error.device, f"does not build kernels: {said(error)}")\n',
        "",
        (f"{FAULTS}/test_build.py::test_a_device_whose_kernels_do_not_build_is_left_out",),
    ),
    Mutant(
        "build",
        "a kernel that does not build loses the device",
        LOSSES,
        "_NO_LOSS = (OutOfMemory, CompileError,",
        "_NO_LOSS = (OutOfMemory,",
        (f"{FAULTS}/test_build.py",),
    ),
    Mutant(
        "build",
        "what did not build is not left out of the offers",
        "runtime/costing.py",
        "            if mark in refused():\n                continue\n",
        "",
        (f"{FAULTS}/test_build.py",),
    ),
    # --- sticky errors ---
    Mutant(
        "sticky",
        "a step that fails loses no device",
        LOSSES,
        "        if is_loss(error):\n            registry.lose(device, said(error))\n",
        "",
        (f"{EXHAUSTIVE}::test_a_fault_at_every_call",),
    ),
    Mutant(
        "sticky",
        "steps are given to a device that is lost",
        "runtime/executor.py",
        "        if queue.device.gone:\n            check(queue.device)\n",
        "",
        (f"{RECOVERY}::test_a_device_lost_on_the_way_is_not_touched",),
    ),
    Mutant(
        "sticky",
        "a queue of a lost device is waited for",
        "runtime/executor.py",
        "        if queue.device.gone or JOBS.ending:\n            return\n",
        "        if JOBS.ending:\n            return\n",
        (f"{RECOVERY}::test_a_device_lost_on_the_way_is_not_touched",),
    ),
    Mutant(
        "sticky",
        "who waits for a queue is not told that its device is lost",
        "devices/base.py",
        "            if self.gone:\n                raise DeviceLost",
        "            if False:\n                raise DeviceLost",
        (
            "tests/devices/test_timeline.py::test_who_waits_for_a_queue_is_told_of_a_hang_and_of_a_loss",
        ),
    ),
    Mutant(
        "sticky",
        "a launch error is no reason to recover",
        LOSSES,
        "    return isinstance(error, DeviceError) and not isinstance(error, _NO_LOSS)\n",
        '    return type(error).__name__.startswith("DeviceLost")\n',
        (EXHAUSTIVE, RECOVERY),
    ),
    Mutant(
        "sticky",
        "values on a lost device are taken for good",
        LINEAGE,
        "            sound = not any(program.devices[d].gone or d in run.unsettled for d in ends)\n",
        "            sound = True\n",
        (
            "tests/runtime/faults/test_lineage.py::test_what_is_on_a_device_that_is_not_sound_is_gone",
        ),
    ),
    Mutant(
        "sticky",
        "values that were written over are taken for good",
        LINEAGE,
        "            if write.good and not over.any():\n",
        "            if write.good:\n",
        ("tests/runtime/faults/test_lineage.py::test_values_that_were_written_over_are_gone",),
    ),
    # --- lost devices ---
    Mutant(
        "lost",
        "a lost device is opened again at once",
        REGISTRY,
        "        if _is_out(device_id):\n            raise DeviceLost",
        "        if False:\n            raise DeviceLost",
        (f"{OF_FAULTS}::test_a_lost_device_is_not_opened_until_a_rescan",),
    ),
    Mutant(
        "lost",
        "a lost device is listed",
        REGISTRY,
        "    return [_without_lost(probe) for probe in found] if _LOST else found\n",
        "    return found\n",
        (f"{OF_FAULTS}::test_a_lost_device_is_not_opened_until_a_rescan", RECOVERY),
    ),
    Mutant(
        "lost",
        "rescan brings nothing back",
        FLEET,
        "            self._reopen = bool(self._lost or self._out or self._budgets)\n",
        "            self._reopen = False\n",
        (f"{RECOVERY}::test_the_next_runs_plan_without_the_device_and_a_rescan_brings_it_back",),
    ),
    Mutant(
        "lost",
        "the next run plans with the device again",
        FLEET,
        "                self._lost[name] = self.devices.pop(name).info\n",
        "                self._lost[name] = self.devices[name].info\n",
        (f"{RECOVERY}::test_the_next_runs_plan_without_the_device_and_a_rescan_brings_it_back",),
    ),
    Mutant(
        "lost",
        "what survivors hold is made again",
        LINEAGE,
        "                self.held[value], self.kept[value] = found, name\n                return True\n",
        "                return False\n",
        (f"{RECOVERY}::test_what_survivors_hold_is_kept_and_said_so",),
    ),
    Mutant(
        "lost",
        "a device that cannot be opened again is planned for",
        FLEET,
        '            whys = {**dict.fromkeys(self._lost, "it is not open again"), **self._shut}\n',
        "            whys: dict[str, str] = {}\n",
        (f"{RECOVERY}::test_a_device_that_cannot_be_opened_again_stays_out",),
    ),
    Mutant(
        "lost",
        "pins to a lost device bind on",
        FLEET,
        "    pins = {op: device for op, device in constraints.pin.items() if device not in gone}\n",
        "    pins = dict(constraints.pin)\n",
        (f"{RECOVERY}::test_devices_that_fail_one_after_the_other",),
    ),
    Mutant(
        "lost",
        "what is forbidden is done where a device is lost",
        "runtime/recovery.py",
        "    fallback.check(found.plan, asked, config.fallback, rest)\n",
        "",
        (
            f"{RECOVERY}::test_no_device_left_is_an_error_with_a_type",
            f"{RECOVERY}::test_what_is_forbidden_stays_so",
        ),
    ),
    Mutant(
        "lost",
        "a second failure ends the run",
        "runtime/recovery.py",
        "ATTEMPTS = 4\n",
        "ATTEMPTS = 0\n",
        (f"{RECOVERY}::test_devices_that_fail_one_after_the_other",),
    ),
    # --- hangs ---
    Mutant(
        "hang",
        "nobody looks whether devices hang",
        "runtime/progress.py",
        "            if took > max(self.floor, allowed):\n",
        "            if False:\n",
        (f"{RECOVERY}::test_a_hang_lets_the_threads_of_the_others_go_on",),
    ),
    Mutant(
        "hang",
        "time counts while nobody looked",
        "runtime/progress.py",
        "            self._seen += min(now - self._last, LONGEST)\n",
        "            self._seen += now - self._last\n",
        (f"{RECOVERY}::test_time_in_which_nobody_looked_does_not_count",),
    ),
    Mutant(
        "hang",
        "memory that a device may still write to is given back",
        "runtime/queued.py",
        "            registry.bury(self)  # what hangs may still write to its memory\n",
        "            pass\n",
        (f"{RECOVERY}::test_what_a_hung_device_may_write_to_is_kept_and_not_used_again",),
    ),
    Mutant(
        "hang",
        "an instance that a device may still write to is used again",
        "runtime/executor.py",
        "        spoilt = self._failed and (bool(self.unsettled) or any(d.gone for d in devices))\n",
        "        spoilt = False\n",
        (f"{RECOVERY}::test_what_a_hung_device_may_write_to_is_kept_and_not_used_again",),
    ),
    Mutant(
        "hang",
        "a call outside of a run has no watchdog",
        "devices/base.py",
        "            if left <= 0:\n",
        "            if False:\n",
        (
            "tests/devices/test_timeline.py::test_who_waits_for_a_queue_is_told_of_a_hang_and_of_a_loss",
        ),
    ),
    Mutant(
        "hang",
        "a worker process that does not answer is waited for",
        PROCESS,
        "            if left <= 0:\n",
        "            if False:\n",
        (f"{ISOLATED}::test_a_driver_that_does_not_answer_is_killed",),
    ),
    # --- devices that lie ---
    Mutant(
        "verify",
        "copies are not compared",
        COPIES,
        "        if np.array_equal(array, back):\n            return\n",
        "        return\n",
        (f"{CHECKS}::test_a_damaged_copy_is_made_again",),
    ),
    Mutant(
        "verify",
        "a damaged copy is not made again",
        COPIES,
        "TRIES = 2\n",
        "TRIES = 1\n",
        (f"{CHECKS}::test_a_damaged_copy_is_made_again",),
    ),
    Mutant(
        "verify",
        "weights are not compared",
        COPIES,
        "        if np.array_equal(sent, back):\n",
        "        if True:\n",
        (f"{CHECKS}::test_a_damaged_weight_is_sent_again",),
    ),
    Mutant(
        "verify",
        "what is saved of a failed run is not compared",
        COPIES,
        "        if np.array_equal(first, again):\n",
        "        if True:\n",
        (f"{CHECKS}::test_what_is_saved_of_a_failed_run_is_looked_at",),
    ),
    Mutant(
        "verify",
        "a copy that comes late is not waited for",
        COPIES,
        "        if np.array_equal(array, back):\n            return\n        queue.finish()\n",
        "        if np.array_equal(array, back):\n            return\n",
        (f"{CHECKS}::test_a_copy_that_comes_late_finds_nothing_to_spoil",),
    ),
    Mutant(
        "verify",
        "results are not held against the host's",
        "runtime/recompute.py",
        "        if bad.any():\n",
        "        if False:\n",
        (f"{CHECKS}::test_a_step_that_is_not_done_is_named",),
    ),
    Mutant(
        "verify",
        "a device that damages copies is kept",
        LOSSES,
        "_NO_LOSS = (OutOfMemory, CompileError, WrongResult, Unavailable)",
        "_NO_LOSS = (OutOfMemory, CompileError, WrongResult, Unavailable, DeviceError)",
        (f"{CHECKS}::test_a_device_that_damages_every_copy_is_given_up",),
    ),
    # --- worker processes ---
    Mutant(
        "worker",
        "nobody waits for the end of a process",
        PROCESS,
        "    ended.set()\n    if tell is not None:\n        tell()\n",
        "    ended.set()\n",
        (f"{ISOLATED}::test_a_killed_process_is_noticed_at_once_though_nobody_asks",),
    ),
    Mutant(
        "worker",
        "work that ended three processes is given to a fourth",
        PROCESS,
        "        return self._counts[device, work] >= DEATHS\n",
        "        return False\n",
        (f"{ISOLATED}::test_work_that_ended_three_processes_is_refused",),
    ),
    Mutant(
        "worker",
        "deaths are not counted against what the queues were at",
        ISOLATED_DEVICE,
        "                DEATHS_AT.note(self.name, head.works)\n",
        "                pass\n",
        (f"{ISOLATED_RUNS}::test_a_kernel_that_ended_three_processes_gives_way_to_another_one",),
    ),
    Mutant(
        "worker",
        "who waits for a lane is not told of the end",
        "devices/isolated_lane.py",
        "        except EOFError:\n            self._fail()\n            return False\n",
        "        except EOFError:\n            return False\n",
        (f"{ISOLATED}::test_who_waits_for_a_kernel_is_told_of_the_signal",),
    ),
    Mutant(
        "worker",
        "a process outlives the one that started it",
        "devices/isolated_worker.py",
        "    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | fcntl.FASYNC)\n",
        "",
        (
            f"{ISOLATED}::test_a_driver_that_lets_no_python_run_ends_with_the_process_that_started_it",
        ),
    ),
    Mutant(
        "worker",
        "a process that ended loses no device",
        ISOLATED_DEVICE,
        '            registry.lose(self, f"{type(error).__name__}: {error}")\n',
        "            pass\n",
        (f"{ISOLATED}::test_a_killed_process_is_noticed_at_once_though_nobody_asks",),
    ),
    Mutant(
        "worker",
        "Ctrl-C reaches the process",
        "devices/isolated_worker.py",
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process to answer\n",
        "",
        (f"{ISOLATED}::test_ctrl_c_is_not_for_it",),
    ),
]
