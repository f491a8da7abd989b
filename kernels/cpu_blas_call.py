"""Calls of BLAS routines by address from compiled code."""

from __future__ import annotations

from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_vector import LLVM_TYPES

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112
"""Values of the C interface's enumerations."""

Matrix = tuple[str, str]
"""Address and leading dimension."""


class BlasCall:
    """Appends calls of the routine at the address ``routine`` on elements of ``dtype``."""

    def __init__(self, code: Code, dtype: str, wide: bool, routine: str) -> None:
        self.code = code
        self.kind = LLVM_TYPES[dtype]
        self.wide = wide
        self.routine = routine

    def scale(self, word: str) -> str:
        """A factor from the word that holds a double's bits."""
        number = self.code.let(f"bitcast i64 {word} to double")
        if self.kind == "double":
            return number
        return self.code.let(f"fptrunc double {number} to {self.kind}")

    def gemm(
        self,
        transposed: tuple[str, str],
        sizes: tuple[str, str, str],
        scales: tuple[str, str],
        a: Matrix,
        b: Matrix,
        c: Matrix,
    ) -> None:
        """``c = alpha * op(a) @ op(b) + beta * c`` with sizes m, n, k, row-major."""
        (alpha, beta), (m, n, k) = scales, sizes
        given = [
            f"i32 {ROW_MAJOR}", self._flag(transposed[0]), self._flag(transposed[1]),
            self._whole(m), self._whole(n), self._whole(k), f"{self.kind} {alpha}",
            f"ptr {a[0]}", self._whole(a[1]), f"ptr {b[0]}", self._whole(b[1]),
            f"{self.kind} {beta}", f"ptr {c[0]}", self._whole(c[1]),
        ]  # fmt: skip
        self.code.do(f"call void {self.routine}({', '.join(given)})")

    def gemv(
        self,
        transposed: str,
        sizes: tuple[str, str],
        scales: tuple[str, str],
        a: Matrix,
        x: str,
        y: str,
    ) -> None:
        """``y = alpha * op(a) @ x + beta * y``; ``a`` has ``sizes``, row-major."""
        alpha, beta = scales
        one = self._whole("1")
        given = [
            f"i32 {ROW_MAJOR}", self._flag(transposed), self._whole(sizes[0]),
            self._whole(sizes[1]), f"{self.kind} {alpha}", f"ptr {a[0]}", self._whole(a[1]),
            f"ptr {x}", one, f"{self.kind} {beta}", f"ptr {y}", one,
        ]  # fmt: skip
        self.code.do(f"call void {self.routine}({', '.join(given)})")

    def _flag(self, value: str) -> str:
        if value.isdigit():
            return f"i32 {value}"
        return f"i32 {self.code.let(f'trunc i64 {value} to i32')}"

    def _whole(self, value: str) -> str:
        if self.wide:
            return f"i64 {value}"
        if value.isdigit():
            return f"i32 {value}"
        return f"i32 {self.code.let(f'trunc i64 {value} to i32')}"
