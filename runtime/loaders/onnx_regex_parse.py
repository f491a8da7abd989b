"""Patterns in RE2's syntax (https://github.com/google/re2/wiki/Syntax) as trees.

Groups capture nothing and laziness changes nothing where a whole text is to match, so neither is
kept. What RE2 lacks (backreferences, looking around) is an error here too.
"""

from __future__ import annotations

import string
import unicodedata
from dataclasses import dataclass

MAX_REPEAT = 1000
"""Repetitions that a count may ask for, as in RE2."""

MAX_DEPTH = 200
"""Groups in one another."""


class PatternError(ValueError):
    """A pattern that RE2's syntax does not have."""


class PatternLimit(PatternError):
    """A pattern of RE2's syntax that is too large, or needs what is not known here."""


@dataclass(frozen=True, slots=True)
class Chars:
    """A set of characters: ranges of code points, other sets, Unicode categories."""

    ranges: tuple[tuple[int, int], ...] = ()
    parts: tuple[Chars, ...] = ()
    category: str | None = None
    negated: bool = False
    fold: bool = False

    def has(self, char: str) -> bool:
        """True where the set has a character, or with ``fold`` one that differs in case."""
        found = self._plain(char)
        if self.fold and not found:
            found = any(self._plain(c) for c in _folds(char))
        return found is not self.negated

    def _plain(self, char: str) -> bool:
        code = ord(char)
        if any(low <= code <= high for low, high in self.ranges):
            return True
        if self.category is not None and unicodedata.category(char).startswith(self.category):
            return True
        return any(part.has(char) for part in self.parts)


def _folds(char: str) -> set[str]:
    """The characters that a character equals where case does not count."""
    near = {char.lower(), char.upper(), char.upper().lower(), char.lower().upper()}
    # U+017F and U+212A fold onto s and k, which Python's mappings do not say backwards.
    near |= {"\u017f"} if char in "sS" else set()
    near |= {"\u212a"} if char in "kK" else set()
    return {c for c in near if len(c) == 1}


@dataclass(frozen=True, slots=True)
class Assertion:
    """A place: "A" and "z" ends of the text, "^" and "$" of a line, "b" and "B" of a word."""

    kind: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """From ``low`` to ``high`` times (None: any number)."""

    item: Tree
    low: int
    high: int | None


Tree = Chars | Assertion | Sequence | Choice | Repeat

_DIGIT = ((48, 57),)
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE = ((9, 10), (12, 13), (32, 32))
_PERL = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_POSIX = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": _DIGIT,
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)),
    "upper": ((65, 90),),
    "word": _WORD,
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}
_ESCAPES = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_KINDS = {
    "C": "cfos",
    "L": "lmotu",
    "M": "cen",
    "N": "dlo",
    "P": "cdefios",
    "S": "ckmo",
    "Z": "lps",
}
_CATEGORIES = _KINDS.keys() | {group + kind for group, kinds in _KINDS.items() for kind in kinds}
_ANY = ((0, 0x10FFFF),)


class Parser:
    """Recursive descent over one pattern; the flags are those of the group at hand."""

    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 0
        self.flags: frozenset[str] = frozenset()
        self.depth = 0

    def parse(self) -> Tree:
        """The whole pattern; raises PatternError."""
        tree = self.choice()
        if self.at < len(self.text):
            raise PatternError("an unmatched )")
        return tree

    def peek(self, what: str) -> bool:
        """True where a text comes next."""
        return self.text.startswith(what, self.at)

    def skip(self, what: str) -> bool:
        """Pass a text where it comes next."""
        found = self.peek(what)
        self.at += len(what) * found
        return found

    def next(self, where: str) -> str:
        """Pass one character; raises where there is none."""
        if self.at >= len(self.text):
            raise PatternError(f"it ends in {where}")
        self.at += 1
        return self.text[self.at - 1]

    def until(self, end: str, where: str) -> str:
        """Pass what comes before ``end``, and that."""
        place = self.text.find(end, self.at)
        if place < 0:
            raise PatternError(f"it ends in {where}")
        found, self.at = self.text[self.at : place], place + len(end)
        return found

    # --- structure ---

    def choice(self) -> Tree:
        """Alternatives between bars."""
        items = [self.sequence()]
        while self.skip("|"):
            items.append(self.sequence())
        return items[0] if len(items) == 1 else Choice(tuple(items))

    def sequence(self) -> Tree:
        """Atoms with their repetitions, up to a bar or the end of the group."""
        items: list[Tree] = []
        while self.at < len(self.text) and not self.peek("|") and not self.peek(")"):
            if self.skip("\\Q"):
                rest = self.text.find("\\E", self.at)
                quoted = self.text[self.at : rest if rest >= 0 else None]
                self.at += len(quoted) + 2 * (rest >= 0)
                items += [self.literal(ord(c)) for c in quoted]
            else:
                items.append(self.atom())
            if items:
                items[-1] = self.repeated(items[-1])
        return Sequence(tuple(items))

    def repeated(self, item: Tree) -> Tree:
        """An atom with the repetition after it, if any."""
        bounds = self.bounds()
        if bounds is None:
            return item
        self.skip("?")
        start = self.at
        if self.bounds() is not None:
            raise PatternError(f"a repetition of a repetition at {start}")
        return Repeat(item, *bounds)

    def bounds(self) -> tuple[int, int | None] | None:
        """Pass a repetition: how often at least and at most, or None where there is none."""
        for mark, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.skip(mark):
                return bounds
        if not self.peek("{"):
            return None
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : max(end, 0)].partition(",")
        numbers = low + high
        if end < 0 or not low or not (numbers.isascii() and numbers.isdigit()):
            return None
        self.at = end + 1
        if len(low) > 4 or len(high) > 4:
            raise PatternError(f"more than {MAX_REPEAT} repetitions")
        first = int(low)
        last = first if not comma else int(high) if high else None
        if max(first, last or 0) > MAX_REPEAT or (last is not None and last < first):
            raise PatternError(f"a repetition of {first} to {last}; the most is {MAX_REPEAT}")
        return first, last

    def atom(self) -> Tree:
        """One character, class, assertion or group."""
        char = self.next("nothing")
        if char in "*+?":
            raise PatternError(f"{char} has nothing to repeat")
        if char == "(":
            return self.group()
        if char == "[":
            return self.bracket()
        if char == "\\":
            return self.escape()
        if char == ".":
            return Chars(_ANY if "s" in self.flags else ((0, 9), (11, 0x10FFFF)))
        if char in "^$":
            if "m" in self.flags:
                return Assertion(char)
            return Assertion("A" if char == "^" else "z")
        return self.literal(ord(char))

    def literal(self, code: int) -> Chars:
        """One character."""
        return Chars(((code, code),), fold="i" in self.flags)

    def group(self) -> Tree:
        """What stands in parentheses; flags alone hold to the end of the group around them."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise PatternLimit(f"nesting of more than {MAX_DEPTH} groups")
        outer = self.flags
        if self.skip("?"):
            if self.skip("P<") or (self.peek("<") and not self.peek("<=") and self.skip("<")):
                name = self.until(">", "the name of a group")
                if not name.isidentifier() or name.startswith("<!"):
                    raise PatternError(f"a group of the name {name[:40]!r}")
            elif self.set_flags():
                self.depth -= 1
                return Sequence(())
        tree = self.choice()
        if not self.skip(")"):
            raise PatternError("an unmatched (")
        self.flags = outer
        self.depth -= 1
        return tree

    def set_flags(self) -> bool:
        """Pass flags; True where they are all that the group holds."""
        on = True
        while True:
            char = self.next("flags")
            if char in "imsU":
                self.flags = self.flags | {char} if on else self.flags - {char}
            elif char == "-" and on:
                on = False
            elif char in ":)":
                return char == ")"
            else:
                raise PatternError(f"(?{char} is not in RE2's syntax")

    # --- characters ---

    def escape(self) -> Tree:
        """What a backslash begins, outside brackets."""
        char = self.text[self.at : self.at + 1]
        if char and char in "AzbB":
            self.at += 1
            return Assertion(char)
        found = self.escaped_class()
        return self.literal(self.escaped_code()) if found is None else found

    def escaped_class(self) -> Chars | None:
        """Pass the class after a backslash (a digit, a category ...), or None."""
        char = self.text[self.at : self.at + 1]
        if char and char.lower() in _PERL:
            self.at += 1
            return Chars(_PERL[char.lower()], negated=char.isupper(), fold="i" in self.flags)
        if char in ("p", "P"):
            self.at += 1
            name = self.next("a category")
            if name == "{":
                name = self.until("}", "a category")
            negated = (char == "P") is not name.startswith("^")
            name = name.removeprefix("^")
            if name == "Any":
                return Chars(_ANY, negated=negated)
            if name not in _CATEGORIES:
                raise PatternLimit(f"a script, \\p{{{name[:40]}}},")
            return Chars(category=name, negated=negated, fold="i" in self.flags)
        return None

    def escaped_code(self) -> int:
        """Pass the character after a backslash; its code point."""
        char = self.next("a backslash")
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char == "x":
            braced = self.skip("{")
            digits = self.until("}", "\\x{") if braced else self.next("\\x") + self.next("\\x")
            if not digits or not set(digits) <= set(string.hexdigits) or len(digits) > 8:
                raise PatternError(f"\\x with {digits[:40]!r}")
            code = int(digits, 16)
        elif char in "01234567":
            more = self.text[self.at : self.at + 2]
            digits = char + more[: len(more) - len(more.lstrip(string.octdigits))]
            if char != "0" and len(digits) < 2:
                raise PatternError(f"\\{char}: RE2 has no backreferences")
            self.at += len(digits) - 1
            code = int(digits, 8)
        elif char.isascii() and char.isalnum():
            raise PatternError(f"\\{char} is not in RE2's syntax")
        else:
            code = ord(char)
        if code > 0x10FFFF:
            raise PatternError(f"{code:#x} is no code point")
        return code

    def bracket(self) -> Chars:
        """A class in brackets."""
        negated = self.skip("^")
        ranges: list[tuple[int, int]] = []
        parts: list[Chars] = []
        first = True
        while first or not self.skip("]"):
            first = False
            part = self.bracket_class()
            if part is not None:
                parts.append(part)
                continue
            low = high = self.bracket_code()
            if self.peek("-") and not self.peek("-]"):
                self.at += 1
                high = self.bracket_code()
            if high < low:
                raise PatternError(f"a range from {chr(low)!r} to {chr(high)!r}")
            ranges.append((low, high))
        return Chars(tuple(ranges), tuple(parts), None, negated, "i" in self.flags)

    def bracket_class(self) -> Chars | None:
        """Pass a named or escaped class inside brackets, or None."""
        if self.peek("[:"):
            self.at += 2
            name = self.until(":]", "the name of a class")
            negated = name.startswith("^")
            ranges = _POSIX.get(name.removeprefix("^"))
            if ranges is None:
                raise PatternError(f"[:{name[:40]}:] is no class")
            return Chars(ranges, negated=negated, fold="i" in self.flags)
        if not self.skip("\\"):
            return None
        found = self.escaped_class()
        self.at -= found is None
        return found

    def bracket_code(self) -> int:
        """Pass one character inside brackets."""
        return self.escaped_code() if self.skip("\\") else ord(self.next("a class"))
