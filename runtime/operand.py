"""Operands: the values a GraphBuilder hands out, and the names they go by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from crossdock.runtime.tensor import Array, TensorSpec


class Operand:
    """A value of a graph being built: an input, a constant, or the result of an op.

    Operands belong to the builder that made them and are compared by identity. ``name`` is the
    value's name in the built graph, ``owner`` what all operands of a builder have in common.
    """

    __slots__ = ("name", "owner", "spec", "value")

    def __init__(
        self, owner: object, name: str, spec: TensorSpec, value: Array | None = None
    ) -> None:
        self.owner = owner
        self.name = name
        self.spec = spec
        self.value = value

    @property
    def dtype(self) -> str:
        """Element type, as WebNN names it."""
        return self.spec.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions. In a graph with symbols an entry may be a symbol's name.

        ``spec.shape`` is the same, typed for symbols.
        """
        return cast("tuple[int, ...]", self.spec.shape)

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return self.spec.rank

    def __repr__(self) -> str:
        kind = "constant " if self.value is not None else ""
        return f"<{kind}{self.name}: {self.spec}>"


@dataclass
class Names:
    """Names in use, and the next number for each stem."""

    used: dict[str, Operand | None] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def fresh(self, stem: str, *, plain: bool = False) -> str:
        """A name not in use: the stem itself if ``plain``, else the stem with a number."""
        if plain and stem not in self.used:
            return stem
        while True:
            number = self.count.get(stem, 1 if plain else 0)
            self.count[stem] = number + 1
            if (name := f"{stem}_{number}") not in self.used:
                return name
