"""The future of a submitted run."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from typing import Any

from crossdock.runtime.errors import Cancelled
from crossdock.runtime.pool import Deadline


class RunFuture(Future[dict[str, Any]]):
    """A ``concurrent.futures.Future`` that can also be awaited in a running event loop."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline
        self._given_up = False
        self.withdraw: Callable[[], None] | None = None
        """Takes a run that has not begun out of those that wait."""

    def cancel(self) -> bool:
        """Give the run up, at once and even while it runs; False where it has ended.

        ``result`` then raises Cancelled, or CancelledError where the run had not begun. Devices
        end a run that nobody waits for as soon as they can, and its memory comes back then.
        """
        if super().cancel():
            withdraw, self.withdraw = self.withdraw, None
            if withdraw is not None:
                withdraw()
            return True
        self._given_up = True  # before anybody is told of the end
        try:
            self.set_exception(Cancelled("the run was cancelled while it ran"))
        except InvalidStateError:  # it has ended
            self._given_up = False
            return False
        self._deadline.cancel()
        return True

    def cancelled(self) -> bool:
        """Whether it was given up."""
        return self._given_up or super().cancelled()

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        import asyncio  # takes long to load, and few sessions need it

        return asyncio.wrap_future(self).__await__()
