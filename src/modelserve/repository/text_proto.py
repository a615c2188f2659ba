"""Reads the protobuf text format into plain trees, each value with its place in the text.

Without a schema: what a field may hold is asked by the one who reads the tree. Extensions and
`Any` in brackets are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from modelserve.errors import LoadError

__all__ = ["Field", "Message", "Scalar", "TextProto", "Value"]

_MAX_DEPTH: Final = 64
_MAX_DIGITS: Final = 64

_SKIP: Final = re.compile(r"(?:[ \t\r\n\v\f]|#[^\n]*)*+")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEX: Final = re.compile(r"0[xX][0-9a-fA-F]+")
_NUMBER: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?")
_AFTER_NUMBER: Final = re.compile(r"[A-Za-z0-9_.]")
_STRING: Final = re.compile(r"\"(?:[^\"\\\n]|\\[^\n])*+\"|'(?:[^'\\\n]|\\[^\n])*+'")
_ESCAPE: Final = re.compile(
    r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))"
)
_ESCAPES: Final = dict(zip("abfnrtv\\'\"?", "\a\b\f\n\r\t\v\\'\"?", strict=True))
_SPECIAL: Final = ("inf", "infinity", "nan")
_CLOSING: Final = {"{": "}", "<": ">"}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A string, number or bare name (an enum's, `true`, `inf`).

    Args:
        kind: What it was written as.
        value: `bytes`, `int`, `float`, or `str` for a name.
        at: Where it stands, in characters from the beginning.
    """

    kind: Literal["string", "integer", "float", "name"]
    value: bytes | int | float | str
    at: int

    def __str__(self) -> str:
        if isinstance(self.value, bytes):
            return f'the string "{self.value.decode(errors="replace")}"'
        return f"the {self.kind} {self.value}"


@dataclass(frozen=True, slots=True)
class Field:
    """One field as written: its name and its values, several where they stood in a list."""

    name: str
    values: tuple[Value, ...]
    listed: bool
    at: int


@dataclass(frozen=True, slots=True)
class Message:
    """Fields in the order they were written."""

    fields: tuple[Field, ...]
    at: int

    def __str__(self) -> str:
        return "a message"


Value: TypeAlias = Scalar | Message


class TextProto:
    """A text in protobuf's text format, read from its beginning to its end by `read`.

    Args:
        text: The text.
        name: What to call it in errors.

    Example:
        >>> message = TextProto("dims: [1, 2]", "config.pbtxt").read()
        >>> [value.value for value in message.fields[0].values]
        [1, 2]
    """

    __slots__ = ("_position", "_text", "name")

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._position = 0
        self.name = name

    def error(self, at: int, message: str) -> LoadError:
        """Make the error that says what was wrong at a place."""
        line = self._text.count("\n", 0, at) + 1
        column = at - self._text.rfind("\n", 0, at)
        return LoadError(f"{self.name}:{line}:{column}: {message}")

    def read(self) -> Message:
        """Read the whole text as one message.

        Raises:
            LoadError: It is not in the text format; with line, column and what was expected.
        """
        self._position = 0
        self._skip()
        return self._message(0, "", 0)

    def _skip(self) -> None:
        found = _SKIP.match(self._text, self._position)
        if found is not None:
            self._position = found.end()

    def _peek(self) -> str:
        return self._text[self._position : self._position + 1]

    def _take(self, characters: str) -> str:
        """Step over one of these characters, if it comes next; return it, or nothing."""
        character = self._peek()
        if not character or character not in characters:
            return ""
        self._position += 1
        self._skip()
        return character

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._position)
        if found is None:
            return ""
        self._position = found.end()
        return found.group()

    def _wanted(self, wanted: str) -> LoadError:
        character = self._peek()
        found = f'"{character}"' if character.isprintable() else repr(character)
        return self.error(
            self._position, f"expected {wanted}, got {found if character else 'the end'}"
        )

    def _message(self, at: int, closing: str, depth: int) -> Message:
        fields: list[Field] = []
        while True:
            if closing and self._take(closing):
                break
            if not closing and not self._peek():
                break
            fields.append(self._field(closing, depth))
            self._take(",;")
        return Message(tuple(fields), at)

    def _field(self, closing: str, depth: int) -> Field:
        at = self._position
        name = self._match(_NAME)
        if not name:
            raise self._wanted(f'a field name or "{closing}"' if closing else "a field name")
        self._skip()
        colon = bool(self._take(":"))
        if not colon and self._peek() not in ("{", "<", "["):
            raise self._wanted(f'":" after {name}')
        if not self._take("["):
            return Field(name, (self._value(depth, scalar=colon),), False, at)
        values: list[Value] = []
        while not self._take("]"):
            if values and not self._take(","):
                raise self._wanted('"," or "]"')
            values.append(self._value(depth, scalar=colon))
        return Field(name, tuple(values), True, at)

    def _value(self, depth: int, *, scalar: bool) -> Value:
        at = self._position
        opening = self._take("{<")
        if opening:
            if depth >= _MAX_DEPTH:
                raise self.error(at, f"expected at most {_MAX_DEPTH} messages in one another")
            return self._message(at, _CLOSING[opening], depth + 1)
        if not scalar:
            raise self._wanted('"{" (values that are no messages need a ":" before them)')
        return self._scalar()

    def _scalar(self) -> Scalar:
        at = self._position
        if self._peek() in ('"', "'"):
            return self._string()
        negative = bool(self._take("-"))
        if negative or not _NAME.match(self._text, at):
            return self._number(at, negative)
        name = self._match(_NAME)
        self._skip()
        return Scalar("name", name, at)

    def _number(self, at: int, negative: bool) -> Scalar:
        special = self._match(_NAME)
        if special:
            if special.lower() not in _SPECIAL:
                raise self.error(at, f"expected a number after the minus, got {special}")
            self._skip()
            return Scalar("float", -float(special), at)
        text = self._match(_HEX) or self._match(_NUMBER)
        if not text:
            raise self._wanted("a value")
        if _AFTER_NUMBER.match(self._text, self._position):
            raise self._wanted(f"a separator after {text}")
        self._skip()
        value = self._evaluate(text, at)
        return Scalar(
            "integer" if isinstance(value, int) else "float", -value if negative else value, at
        )

    def _evaluate(self, text: str, at: int) -> int | float:
        if text[:2] in ("0x", "0X"):
            base = 16
        elif not text.isdecimal():
            return float(text.rstrip("fF"))
        else:
            base = 8 if text[0] == "0" else 10
        if len(text) > _MAX_DIGITS:
            raise self.error(at, f"expected a number of 64 bits, got {len(text)} digits")
        try:
            return int(text, base)
        except ValueError as error:
            raise self.error(at, f"{text} is not an octal number") from error

    def _string(self) -> Scalar:
        """Read a string and those that follow it, which are one with it."""
        start = self._position
        parts: list[bytes] = []
        while self._peek() in ('"', "'"):
            at = self._position
            quoted = self._match(_STRING)
            if not quoted:
                raise self.error(at, "expected the string to end on its line")
            parts.append(self._unescape(quoted[1:-1], at + 1))
            self._skip()
        return Scalar("string", b"".join(parts), start)

    def _unescape(self, text: str, at: int) -> bytes:
        parts: list[bytes] = []
        end = 0
        for found in _ESCAPE.finditer(text):
            parts.append(self._encode(text[end : found.start()], at + end))
            parts.append(self._escape(found, at + found.start()))
            end = found.end()
        parts.append(self._encode(text[end:], at + end))
        return b"".join(parts)

    def _encode(self, text: str, at: int) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise self.error(at + error.start, "expected Unicode text, got half a pair") from error

    def _escape(self, found: re.Match[str], at: int) -> bytes:
        octal, two, four, eight, letter = found.groups()
        if letter is not None:
            if letter not in _ESCAPES:
                raise self.error(at, f"unknown escape \\{letter}")
            return _ESCAPES[letter].encode()
        if octal is not None or two is not None:
            value = int(octal, 8) if octal is not None else int(two, 16)
            if value > 0xFF:
                raise self.error(at, f"expected at most \\377, got \\{octal}")
            return bytes([value])
        code = int(four or eight, 16)
        if code > 0x10FFFF:
            raise self.error(at, f"there is no character {code:#x}")
        return self._encode(chr(code), at)
