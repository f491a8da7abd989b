"""Messages and memory between this process and one that a device runs in.

A message is JSON behind its length, over a pair of Unix sockets; tensors go through memory that
both processes have mapped, never through a socket. That memory is a file without a name
(``memfd_create``): it ends with the last process that maps it, however that one ends.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import socket
import struct
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdock.runtime.tensor import Array

SLOT = 1 << 20
"""Bytes of a tensor that one message carries; a multiple of every device's alignment."""
SLOTS = 8
"""Such pieces that may be under way in a queue: one is filled while another is emptied."""
_LENGTH = struct.Struct("<I")
_CHUNK = 1 << 16
MOST_DESCRIPTORS = 32
"""File descriptors that come with one message at most."""
_OPEN: weakref.WeakSet[Channel] = weakref.WeakSet()


class Channel:
    """One end of a pair of sockets. One thread at a time may receive; any may send.

    File descriptors come over one that ``takes_descriptors``, which makes receiving slower.

    Raises:
        EOFError: the other end is gone, from every call then.
    """

    def __init__(self, sock: socket.socket, *, takes_descriptors: bool = False) -> None:
        self._socket = sock
        self._takes_descriptors = takes_descriptors
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._sending = threading.Lock()
        weakref.finalize(self, sock.close).atexit = False
        _OPEN.add(self)

    @staticmethod
    def pair() -> tuple[Channel, socket.socket]:
        """One end, and the socket of the other one, to be sent to another process and closed."""
        mine, other = socket.socketpair()
        return Channel(mine), other

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send a message; file descriptors arrive with it or before it."""
        text = json.dumps(message, separators=(",", ":")).encode()
        data = _LENGTH.pack(len(text)) + text
        try:
            with self._sending:
                if descriptors:
                    sent = socket.send_fds(self._socket, [data], list(descriptors))
                    data = data[sent:]
                self._socket.sendall(data)
        except OSError as error:
            raise EOFError from error
        except BaseException:  # interrupted: half a message may have been sent
            self.end()
            raise

    def receive(self, seconds: float | None = None) -> Any:
        """The next message; None where there is none within so many seconds (0: at once)."""
        while True:
            message = self._next()
            if message is not None:
                return message
            if seconds is not None and not self._readable(seconds):
                return None
            self._fill()

    def _next(self) -> Any:
        """A message that has been received whole."""
        held = self._received
        if len(held) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(held)[0]
        if len(held) < end:
            return None
        text = bytes(held[_LENGTH.size : end])
        del held[:end]
        return json.loads(text)

    def writable(self) -> bool:
        """Whether a short message can be sent without waiting for the other end to read."""
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLOUT)
        except (OSError, ValueError):
            return False
        return bool(poll.poll(0))

    def _readable(self, seconds: float) -> bool:
        poll = select.poll()  # select() takes no descriptor from 1024 on
        try:
            poll.register(self._socket, select.POLLIN)
        except (OSError, ValueError) as error:
            raise EOFError from error
        return bool(poll.poll(seconds * 1e3))

    def _fill(self) -> None:
        try:
            if self._takes_descriptors:
                data, found, _, _ = socket.recv_fds(self._socket, _CHUNK, MOST_DESCRIPTORS)
                self._descriptors += found
            else:
                data = self._socket.recv(_CHUNK)
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        self._received += data

    def descriptors(self, count: int) -> list[int]:
        """File descriptors that came with the message just received; the caller closes them."""
        taken, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return taken

    def end(self) -> None:
        """Wake whoever waits at either end: nothing is sent or received any more."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other end is gone already
            return

    def close(self) -> None:
        """Give the descriptor back, where nobody waits here any more."""
        self._socket.close()


class Staging:
    """Memory that two processes share: ``SLOTS`` pieces of ``SLOT`` bytes."""

    def __init__(self, descriptor: int) -> None:
        """Map what ``made`` made."""
        memory = mmap.mmap(descriptor, SLOT * SLOTS)
        self.slots: list[Array] = list(np.frombuffer(memory, np.uint8).reshape(SLOTS, SLOT))

    @staticmethod
    def made() -> int:
        """The descriptor of new memory; pages are taken from the system when they are used."""
        descriptor = os.memfd_create("crossdock", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, SLOT * SLOTS)
        return descriptor


def _forked() -> None:
    """In a child: let go of the workers of its parent, which end with the last who holds on."""
    for channel in list(_OPEN):
        channel.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
