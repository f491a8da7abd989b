"""Text of LLVM functions for the host: SSA names, blocks, counted loops, compiled once a key.

Every function has the ABI of ``NativeCall``: ``void f(ptr args, i64 begin, i64 end)``. Vector code
is written out with explicit lanes, so that only cheap passes are needed and a kernel compiles in
milliseconds.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

from crossdock.devices.cpu_compiler import AS_WRITTEN
from crossdock.devices.cpu_llvm import compile_ir
from crossdock.devices.program import Function

SIGNATURE = "ptr %args, i64 %begin, i64 %end"

Index = str | int
"""An i64: an SSA name or a literal."""


@dataclass
class Loop:
    """A counted loop being written: its index, the carried values, and their next values."""

    index: str
    values: tuple[str, ...]
    next: Sequence[str] = field(default_factory=tuple)


class Code:
    """One function under construction."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._stack: list[str] = []
        self._names = 0
        self._declared: dict[str, str] = {}
        self._block = "entry"

    def let(self, text: str) -> str:
        """Append an instruction with a result and return its name."""
        self._names += 1
        name = f"%v{self._names}"
        self._lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        """Append an instruction without a result."""
        self._lines.append(f"  {text}")

    def declare(self, name: str, signature: str) -> str:
        """Declare an outside function; ``signature`` has ``@`` where the name goes."""
        self._declared[name] = "declare " + signature.replace("@", f"@{name}")
        return f"@{name}"

    def word(self, index: int) -> str:
        """Argument word ``index`` as i64."""
        at = self.let(f"getelementptr i64, ptr %args, i64 {index}")
        return self.let(f"load i64, ptr {at}, align 8")

    def pointer(self, index: int) -> str:
        """Argument word ``index`` as an address."""
        return self.let(f"inttoptr i64 {self.word(index)} to ptr")

    def number(self, index: int) -> str:
        """Argument word ``index`` as the double whose bits it holds."""
        return self.let(f"bitcast i64 {self.word(index)} to double")

    def at(self, pointer: str, kind: str, index: Index) -> str:
        """Address of element ``index`` of an array of LLVM type ``kind``."""
        return self.let(f"getelementptr {kind}, ptr {pointer}, i64 {index}")

    def stack(self, kind: str, count: int) -> str:
        """Memory for ``count`` elements on the calling thread's stack, aligned to a cache line."""
        name = f"%s{len(self._stack)}"
        self._stack.append(f"  {name} = alloca {kind}, i64 {count}, align 64")
        return name

    def load(self, kind: str, address: str) -> str:
        """Load one element."""
        return self.let(f"load {kind}, ptr {address}")

    def store(self, kind: str, value: Index, address: str) -> None:
        """Store one element."""
        self.do(f"store {kind} {value}, ptr {address}")

    def add(self, a: Index, b: Index) -> str:
        """``a + b`` on i64."""
        return self.let(f"add i64 {a}, {b}")

    def sub(self, a: Index, b: Index) -> str:
        """``a - b`` on i64."""
        return self.let(f"sub i64 {a}, {b}")

    def mul(self, a: Index, b: Index) -> str:
        """``a * b`` on i64."""
        return self.let(f"mul i64 {a}, {b}")

    def div(self, a: Index, b: Index) -> str:
        """``a / b`` on i64 that are not negative."""
        return self.let(f"udiv i64 {a}, {b}")

    def rem(self, a: Index, b: Index) -> str:
        """``a % b`` on i64 that are not negative."""
        return self.let(f"urem i64 {a}, {b}")

    def least(self, a: Index, b: Index) -> str:
        """The smaller of two i64."""
        return self.select(self.less(a, b), a, b)

    def greatest(self, a: Index, b: Index) -> str:
        """The greater of two i64."""
        return self.select(self.less(a, b), b, a)

    def less(self, a: Index, b: Index) -> str:
        """``a < b`` on i64."""
        return self.let(f"icmp slt i64 {a}, {b}")

    def select(self, cond: str, a: Index, b: Index, kind: str = "i64") -> str:
        """``cond ? a : b``."""
        return self.let(f"select i1 {cond}, {kind} {a}, {kind} {b}")

    def label(self, name: str) -> None:
        """Begin a basic block."""
        self._lines.append(f"{name}:")
        self._block = name

    def fresh(self, stem: str) -> str:
        """A new label."""
        self._names += 1
        return f"{stem}{self._names}"

    @contextmanager
    def loop(
        self,
        start: Index,
        stop: Index,
        step: Index = 1,
        carried: Sequence[tuple[str, str]] = (),
    ) -> Iterator[Loop]:
        """A loop ``for index in range(start, stop, step)``.

        ``carried`` are (LLVM type, first value); the body reads ``loop.values`` and sets
        ``loop.next``. After the loop ``loop.values`` are the last ones.
        """
        head, body, done = self.fresh("head"), self.fresh("body"), self.fresh("done")
        before = self._block
        self.do(f"br label %{head}")
        self.label(head)
        slot = len(self._lines)
        names = [self.let("") for _ in range(1 + len(carried))]
        more = self.let(f"icmp slt i64 {names[0]}, {stop}")
        self.do(f"br i1 {more}, label %{body}, label %{done}")
        self.label(body)
        loop = Loop(names[0], tuple(names[1:]))
        yield loop
        last, following = self._block, self.add(loop.index, step)
        self.do(f"br label %{head}")
        kinds = [("i64", str(start), following)]
        kinds += [(k, v, n) for (k, v), n in zip(carried, loop.next, strict=True)]
        for offset, (name, (kind, first, after)) in enumerate(zip(names, kinds, strict=True)):
            self._lines[slot + offset] = (
                f"  {name} = phi {kind} [{first}, %{before}], [{after}, %{last}]"
            )
        self.label(done)

    def equal(self, a: Index, b: Index) -> str:
        """``a == b`` on i64."""
        return self.let(f"icmp eq i64 {a}, {b}")

    def both(self, a: str, b: str) -> str:
        """``a && b`` on i1."""
        return self.let(f"and i1 {a}, {b}")

    def negate(self, a: str) -> str:
        """``!a`` on i1."""
        return self.let(f"xor i1 {a}, true")

    @contextmanager
    def when(self, cond: str) -> Iterator[None]:
        """A block that runs where ``cond`` (i1) holds; it yields no values."""
        then, done = self.fresh("then"), self.fresh("done")
        self.do(f"br i1 {cond}, label %{then}, label %{done}")
        self.label(then)
        yield
        self.do(f"br label %{done}")
        self.label(done)

    def text(self, name: str, signature: str = SIGNATURE) -> str:
        """The module's text."""
        return "\n".join(
            (
                *self._declared.values(),
                f"define void @{name}({signature}) {{",
                "entry:",
                *self._stack,
                *self._lines,
                "  ret void",
                "}",
                "",
            )
        )


_ADDRESSES: dict[str, int] = {}
_LOCK = threading.Lock()


def compiled(
    key: str,
    write: Callable[[Code], None],
    signature: str = SIGNATURE,
    *,
    as_written: bool = False,
) -> Function:
    """The kernel ``key``, made by ``write`` when its address is first asked for.

    ``as_written``: LLVM is to leave the loops' addresses as they are (see ``AS_WRITTEN``).
    """
    name = "xd_" + hashlib.sha256(key.encode()).hexdigest()[:24]

    @cache
    def source() -> str:
        code = Code()
        write(code)
        return AS_WRITTEN * as_written + code.text(name, signature)

    def address() -> int:
        found = _ADDRESSES.get(key)
        if found is None:
            with _LOCK:
                found = _ADDRESSES.get(key)
                if found is None:
                    found = compile_ir(source(), (name,))[0]
                    _ADDRESSES[key] = found
        source.cache_clear()
        return found

    return Function(name, address, source)
