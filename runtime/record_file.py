"""A file of a description and blocks of bytes, for what is kept on disk and is large.

::

    32 bytes    SHA-256 over name and description
    8 bytes     size of the description
    ...         the description, JSON
    ...         blocks, each at a multiple of ``BLOCK`` bytes

The description is checked against its digest; each piece of a block against a CRC-32 that the
description holds, while it is read: that finds damage, at a tenth of the time. Who may write
here is settled by the folder (``kept``).
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from crossdock.runtime.kept import DIGEST, Folder, digest_of
from crossdock.runtime.tensor import Array

BLOCK = 4096
PIECE = 1 << 20
HEAD = DIGEST + 8
MOST = 64 << 20
"""Bytes that a description may have."""


class Damaged(Exception):
    """A file is not what was written."""


@dataclass(frozen=True)
class Block:
    """Where a block lies behind the description, its size, and the checks of its pieces."""

    at: int
    nbytes: int
    checks: tuple[int, ...]


def save(
    folder: Folder, name: str, told: Mapping[str, Any], blocks: Sequence[Array], most: int
) -> bool:
    """Write a file of uint8 blocks; False where it cannot be kept.

    Files of the folder that were used least lately make room, so that all take ``most`` bytes.
    """
    table, at = [], 0
    for block in blocks:
        table.append([at, block.nbytes, [zlib.crc32(part.data) for part in _pieces(block)]])
        at += -(-block.nbytes // BLOCK) * BLOCK
    text = json.dumps({"told": told, "blocks": table}).encode()

    def fill(write: Callable[[Any], object]) -> None:
        write(digest_of(name, text) + len(text).to_bytes(8, "little") + text)
        write(bytes(-(HEAD + len(text)) % BLOCK))
        for block in blocks:
            write(block.data)
            write(bytes(-block.nbytes % BLOCK))

    start = -(-(HEAD + len(text)) // BLOCK) * BLOCK
    return folder.make_room(start + at, most) and folder.write(name, fill)


def _pieces(block: Array) -> Iterator[Array]:
    return (block[i : i + PIECE] for i in range(0, block.nbytes, PIECE))


class RecordFile:
    """An open file; ``told`` is its description. Close it, or use it as a context manager."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Takes the descriptor over; raises Damaged."""
        self._descriptor = descriptor
        try:
            self.told, self._blocks = self._read_head(name)
        except BaseException:
            os.close(descriptor)
            raise

    def _read_head(self, name: str) -> tuple[Any, list[Block]]:
        head = os.pread(self._descriptor, HEAD, 0)
        size = int.from_bytes(head[DIGEST:], "little")
        if len(head) != HEAD or size > MOST:
            raise Damaged("its head")
        text = os.pread(self._descriptor, size, HEAD)
        if digest_of(name, text) != head[:DIGEST]:
            raise Damaged("its description")
        data = json.loads(text)
        start = -(-(HEAD + size) // BLOCK) * BLOCK
        return data["told"], [Block(start + at, n, tuple(c)) for at, n, c in data["blocks"]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)

    def sizes(self) -> list[int]:
        """Bytes of each block."""
        return [block.nbytes for block in self._blocks]

    def read(self, targets: Sequence[Array], threads: int) -> None:
        """Read every block into its uint8 array; raises Damaged."""
        work = [
            (target[i * PIECE : (i + 1) * PIECE], block.at + i * PIECE, check)
            for target, block in zip(targets, self._blocks, strict=True)
            for i, check in enumerate(block.checks)
        ]
        work.reverse()
        wrong: list[int] = []

        def take() -> None:
            while work and not wrong:
                try:
                    target, at, check = work.pop()
                except IndexError:  # another thread took the last one
                    return
                got = os.preadv(self._descriptor, [target.data], at)
                if got != target.nbytes or zlib.crc32(target.data) != check:
                    wrong.append(at)

        helpers = [threading.Thread(target=take) for _ in range(min(threads, len(work)) - 1)]
        for helper in helpers:
            helper.start()
        take()
        for helper in helpers:
            helper.join()
        if wrong:
            raise Damaged(f"what is at {wrong[0]}")
