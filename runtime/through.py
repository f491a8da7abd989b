"""Running once, whatever devices fail; what that takes is imported only when one does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from crossdock.runtime.device_array import HostFeeds
from crossdock.runtime.errors import DeviceError
from crossdock.runtime.executor import Outcome, Run
from crossdock.runtime.fleet import Fleet
from crossdock.runtime.keeping import Keeping, hosted
from crossdock.runtime.plan import HOST
from crossdock.runtime.pool import Deadline
from crossdock.runtime.ready import Ready
from crossdock.runtime.transit import Fed, NoRoom

if TYPE_CHECKING:
    from crossdock.runtime.recovery import Rescue


class Attempt:
    """One run of ``ready``, and its rescue where it needs one."""

    __slots__ = ("_arrays", "_deadline", "_fleet", "_ready", "_rescue")

    def __init__(
        self, fleet: Fleet, ready: Ready, arrays: Mapping[str, Fed], deadline: Deadline
    ) -> None:
        self._fleet, self._ready, self._arrays = fleet, ready, arrays
        self._deadline = deadline
        self._rescue: Rescue | None = None

    @property
    def rescue(self) -> Rescue:
        """What goes on where a device failed."""
        if self._rescue is None:
            from crossdock.runtime.recovery import Rescue  # planning takes long to load

            fed = HostFeeds(self._arrays)
            self._rescue = Rescue(self._fleet, self._ready, fed, self._deadline)
        return self._rescue

    def salvage(self, run: Run) -> None:
        """Save what a failed run has made."""
        self.rescue.salvage(run)


def run_through(
    fleet: Fleet,
    ready: Ready,
    arrays: Mapping[str, Fed],
    deadline: Deadline,
    *,
    profile: bool,
    keeping: Keeping | None = None,
) -> tuple[Outcome, Rescue | None]:
    """Run once, whatever devices fail, as long as something is left to run it.

    With ``keeping`` the outputs stay where they are made, on the host where a device failed.

    Returns what came out, and what was done about devices that failed, if one did.

    Raises:
        NoRoom, MemoryBudget: a device has no room for outputs that are to stay there.
        DeviceError: nothing is left to run it.
        ExecutionError: it failed for another reason.
    """
    attempt = Attempt(fleet, ready, arrays, deadline)
    try:
        brief = not profile and deadline.seconds is None
        if brief and ready.direct is not None:
            done = ready.direct.run(arrays, keeping)
            if done is not None:
                return Outcome(*done), None
        salvage = attempt.salvage
        outcome = ready.run(arrays, deadline, profile=profile, keeping=keeping, salvage=salvage)
    except NoRoom:
        raise
    except DeviceError as error:
        outcome = attempt.rescue.recover(error)
        if keeping is not None:
            outcome.outputs = hosted(fleet.devices[HOST], outcome.outputs, keeping.ledger)
        return outcome, attempt.rescue
    return outcome, None
