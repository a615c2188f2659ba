"""Typed access to a model configuration's fields, as protobuf's text format or JSON has them.

Which fields there are, and what they mean, is `triton_config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from modelserve.errors import InvalidInput, ServeError
from modelserve.repository.text_proto import Message, Scalar, TextProto, Value

__all__ = ["Fields", "JsonFields", "TextFields"]

_T = TypeVar("_T")

_TRUE: Final = ("true", "True", "t", 1)
_FALSE: Final = ("false", "False", "f", 0)

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,79}")
_CAPITAL: Final = re.compile(r"(?<!^)([A-Z])")
_DIGITS: Final = re.compile(r"-?[0-9]{1,20}")
_LONGEST_TEXT: Final = 1024
_MOST_IGNORED: Final = 100
"""Names that are remembered of a document, which may have any number of them."""


class Fields(Protocol):
    """The fields of one message. What was never asked for counts as ignored.

    Every method raises `ServeError`, naming the place, where a field holds what it must not.
    """

    @property
    def at(self) -> int:
        """Where the message begins, for `error`."""
        ...

    def error(self, name: str, at: int, message: str) -> ServeError:
        """Return the error that says what was wrong with a field (empty: the message)."""
        ...

    def has(self, name: str) -> bool:
        """Tell whether a field is given."""
        ...

    def integer(self, name: str, low: int, high: int, default: int = 0) -> int:
        """Return a number within bounds."""
        ...

    def integers(self, name: str, low: int, high: int) -> tuple[int, ...] | None:
        """Return a repeated field of numbers; None where it is not given."""
        ...

    def boolean(self, name: str) -> bool:
        """Return a flag; False where it is not given."""
        ...

    def text(self, name: str) -> str:
        """Return a text; empty where it is not given."""
        ...

    def texts(self, name: str) -> Sequence[str]:
        """Return a repeated field of texts."""
        ...

    def choice(self, name: str, choices: dict[str | int, _T]) -> _T | None:
        """Return what a name or number of an enum stands for; None where it is not given."""
        ...

    def message(self, name: str) -> Fields | None:
        """Return a message; None where it is not given."""
        ...

    def messages(self, name: str) -> Sequence[Fields]:
        """Return a repeated field of messages."""
        ...

    def entries(self, name: str) -> Sequence[tuple[str, Fields]]:
        """Return a map of messages by name, each name once."""
        ...

    def pairs(self, name: str) -> Sequence[tuple[str, str]]:
        """Return a map of texts by name, each name once."""
        ...

    def close(self) -> None:
        """Note which fields nobody asked for."""
        ...

    def names_ignored(self) -> tuple[str, ...]:
        """Return the dotted names of all fields that nobody asked for."""
        ...


class TextFields:
    """Fields of a message in protobuf's text format.

    Args:
        proto: The text, which knows the places in it.
        message: The message.
        path: Dotted name of the message with a dot behind it, or empty.
        ignored: Gets the names that nobody asked for.
    """

    __slots__ = ("_found", "_ignored", "_path", "_proto", "at")

    def __init__(
        self, proto: TextProto, message: Message, path: str, ignored: dict[str, None]
    ) -> None:
        self._proto = proto
        self._path = path
        self._ignored = ignored
        self.at = message.at
        self._found: dict[str, tuple[bool, int, list[Value]]] = {}
        for item in message.fields:
            listed, at, values = self._found.get(item.name, (False, item.at, []))
            values.extend(item.values)
            self._found[item.name] = (listed or item.listed, at, values)

    def error(self, name: str, at: int, message: str) -> ServeError:
        """Return the error that says what was wrong at a place."""
        where = f"{self._path}{name}".rstrip(".")
        return self._proto.error(at, f"{where}: {message}")

    def has(self, name: str) -> bool:
        """Tell whether a field is given."""
        return name in self._found

    def integer(self, name: str, low: int, high: int, default: int = 0) -> int:
        """Return a number; see `Fields`."""
        value = self._one(name)
        return default if value is None else self._integer(name, value, low, high)

    def integers(self, name: str, low: int, high: int) -> tuple[int, ...] | None:
        """Return numbers; see `Fields`."""
        if not self.has(name):
            return None
        return tuple(self._integer(name, value, low, high) for value in self._all(name))

    def boolean(self, name: str) -> bool:
        """Return a flag; see `Fields`."""
        value = self._one(name)
        if value is None:
            return False
        if isinstance(value, Scalar) and value.kind in ("name", "integer"):
            if value.value in _TRUE:
                return True
            if value.value in _FALSE:
                return False
        raise self.error(name, value.at, f"expected true or false, got {value}")

    def text(self, name: str) -> str:
        """Return a text; see `Fields`."""
        value = self._one(name)
        return "" if value is None else self._text(name, value)

    def texts(self, name: str) -> list[str]:
        """Return texts; see `Fields`."""
        return [self._text(name, value) for value in self._all(name)]

    def choice(self, name: str, choices: dict[str | int, _T]) -> _T | None:
        """Return what a name or number of an enum stands for; see `Fields`."""
        value = self._one(name)
        if value is None:
            return None
        if (
            isinstance(value, Scalar)
            and isinstance(value.value, str | int)
            and value.value in choices
        ):
            return choices[value.value]
        names = ", ".join(key for key in choices if isinstance(key, str))
        raise self.error(name, value.at, f"expected one of {names}, got {value}")

    def message(self, name: str) -> TextFields | None:
        """Return a message; see `Fields`."""
        value = self._one(name)
        return None if value is None else self._message(name, value)

    def messages(self, name: str) -> list[TextFields]:
        """Return messages; see `Fields`."""
        return [self._message(name, value) for value in self._all(name)]

    def entries(self, name: str) -> list[tuple[str, TextFields]]:
        """Return the messages of a map; see `Fields`."""
        found: dict[str, TextFields] = {}
        for entry in self.messages(name):
            key = entry.text("key")
            if not key:
                raise entry.error("key", entry.at, "expected a name, got none")
            value = entry.message("value")
            if value is None:
                raise entry.error("value", entry.at, f'expected a description of the input "{key}"')
            entry.close()
            found[key] = value
        return list(found.items())

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """Return the texts of a map; see `Fields`."""
        found: dict[str, str] = {}
        for entry in self.messages(name):
            found[entry.text("key")] = entry.text("value")
            entry.close()
        return list(found.items())

    def close(self) -> None:
        """Note which fields nobody asked for."""
        for name in self._found:
            self._ignored.setdefault(self._path + name)

    def names_ignored(self) -> tuple[str, ...]:
        """Return the dotted names of all fields that nobody asked for."""
        return tuple(self._ignored)

    def _all(self, name: str) -> list[Value]:
        return self._found.pop(name)[2] if name in self._found else []

    def _one(self, name: str) -> Value | None:
        if name not in self._found:
            return None
        listed, at, values = self._found.pop(name)
        if listed:
            raise self.error(name, at, "expected one value, got a list")
        if len(values) > 1:
            raise self.error(name, values[1].at, "given twice")
        return values[0]

    def _text(self, name: str, value: Value) -> str:
        if not isinstance(value, Scalar) or not isinstance(value.value, bytes):
            raise self.error(name, value.at, f"expected a string, got {value}")
        try:
            return value.value.decode()
        except UnicodeDecodeError as error:
            raise self.error(name, value.at, "expected UTF-8") from error

    def _integer(self, name: str, value: Value, low: int, high: int) -> int:
        if not isinstance(value, Scalar) or value.kind != "integer":
            raise self.error(name, value.at, f"expected an integer, got {value}")
        number = value.value
        if not isinstance(number, int) or not low <= number <= high:
            raise self.error(name, value.at, f"expected {low} to {high}, got {number!r}")
        return number

    def _message(self, name: str, value: Value) -> TextFields:
        if not isinstance(value, Message):
            raise self.error(name, value.at, f'expected "{{", got {value}')
        return TextFields(self._proto, value, f"{self._path}{name}.", self._ignored)


class JsonFields:
    """Fields of a message in protobuf's JSON form.

    Names may be written as in the schema or in camel case, numbers as numbers or as text, and null
    stands for a field that is not given.

    Args:
        document: The JSON object.
        path: Where it stands, such as ``config.input[0]``.
        name: Dotted name of the message with a dot behind it, or empty.
        ignored: Gets the names that nobody asked for.

    Raises:
        InvalidInput: A field is given under both of its names.

    Example:
        >>> fields = JsonFields({"maxBatchSize": 8, "colour": "red"}, "config", "", {})
        >>> fields.integer("max_batch_size", 0, 100)
        8
        >>> fields.close()
        >>> fields.names_ignored()
        ('colour',)
    """

    __slots__ = ("_found", "_ignored", "_name", "_path", "at")

    def __init__(
        self, document: Mapping[str, Any], path: str, name: str, ignored: dict[str, None]
    ) -> None:
        self._path = path
        self._name = name
        self._ignored = ignored
        self.at = 0
        self._found: dict[str, Any] = {}
        for key, value in document.items():
            if value is None:
                continue
            plain = _CAPITAL.sub(r"_\1", key).lower() if _NAME.fullmatch(key) else key
            if plain in self._found:
                raise self.error(plain, 0, "given twice")
            self._found[plain] = value

    def error(self, name: str, at: int, message: str) -> ServeError:
        """Return the error that says what was wrong at a place."""
        return InvalidInput(message, path=f"{self._path}.{name}" if name else self._path)

    def has(self, name: str) -> bool:
        """Tell whether a field is given."""
        return name in self._found

    def integer(self, name: str, low: int, high: int, default: int = 0) -> int:
        """Return a number; see `Fields`."""
        value = self._found.pop(name, None)
        return default if value is None else self._integer(name, value, low, high)

    def integers(self, name: str, low: int, high: int) -> tuple[int, ...] | None:
        """Return numbers; see `Fields`."""
        if name not in self._found:
            return None
        return tuple(
            self._integer(f"{name}[{index}]", value, low, high)
            for index, value in enumerate(self._list(name))
        )

    def boolean(self, name: str) -> bool:
        """Return a flag; see `Fields`."""
        value = self._found.pop(name, False)
        if value is not True and value is not False:
            raise self.error(name, 0, f"expected true or false, got {_shown(value)}")
        return value

    def text(self, name: str) -> str:
        """Return a text; see `Fields`."""
        return self._text(name, self._found.pop(name, ""))

    def texts(self, name: str) -> list[str]:
        """Return texts; see `Fields`."""
        return [
            self._text(f"{name}[{index}]", value) for index, value in enumerate(self._list(name))
        ]

    def choice(self, name: str, choices: dict[str | int, _T]) -> _T | None:
        """Return what a name or number of an enum stands for; see `Fields`."""
        value = self._found.pop(name, None)
        if value is None:
            return None
        if isinstance(value, str | int) and not isinstance(value, bool) and value in choices:
            return choices[value]
        names = ", ".join(key for key in choices if isinstance(key, str))
        raise self.error(name, 0, f"expected one of {names}, got {_shown(value)}")

    def message(self, name: str) -> JsonFields | None:
        """Return a message; see `Fields`."""
        value = self._found.pop(name, None)
        return None if value is None else self._message(name, name, value)

    def messages(self, name: str) -> list[JsonFields]:
        """Return messages; see `Fields`."""
        return [
            self._message(name, f"{name}[{index}]", value)
            for index, value in enumerate(self._list(name))
        ]

    def entries(self, name: str) -> list[tuple[str, JsonFields]]:
        """Return the messages of a map; see `Fields`."""
        value = self._found.pop(name, {})
        if not isinstance(value, dict):
            raise self.error(name, 0, f"expected an object, got {_shown(value)}")
        if "" in value:
            raise self.error(name, 0, "expected a name, got none")
        return [
            (key, self._message(name, f"{name}.{_shown(key)}", one)) for key, one in value.items()
        ]

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """Return the texts of a map; see `Fields`."""
        value = self._found.pop(name, {})
        if not isinstance(value, dict):
            raise self.error(name, 0, f"expected an object, got {_shown(value)}")
        return [(key, self._text(f"{name}.{_shown(key)}", one)) for key, one in value.items()]

    def close(self) -> None:
        """Note which fields nobody asked for."""
        for name in self._found:
            if len(self._ignored) < _MOST_IGNORED:
                # Somebody else's text, which is to be logged.
                shown = name if _NAME.fullmatch(name) else _shown(name)
                self._ignored.setdefault(self._name + shown)

    def names_ignored(self) -> tuple[str, ...]:
        """Return the dotted names of the fields that nobody asked for."""
        return tuple(self._ignored)

    def _list(self, name: str) -> list[Any]:
        value = self._found.pop(name, [])
        if not isinstance(value, list):
            raise self.error(name, 0, f"expected a list, got {_shown(value)}")
        return value

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.error(name, 0, f"expected a string, got {_shown(value)}")
        if len(value) > _LONGEST_TEXT:
            raise self.error(
                name, 0, f"expected at most {_LONGEST_TEXT} characters, got {len(value)}"
            )
        return value

    def _integer(self, name: str, value: Any, low: int, high: int) -> int:
        # As protobuf has it: 64-bit numbers are written as text, and 8.0 is an 8.
        if (isinstance(value, str) and _DIGITS.fullmatch(value)) or (
            isinstance(value, float) and value.is_integer()
        ):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(name, 0, f"expected an integer, got {_shown(value)}")
        if not low <= value <= high:
            raise self.error(name, 0, f"expected {low} to {high}, got {_shown(value)}")
        return value

    def _message(self, name: str, place: str, value: Any) -> JsonFields:
        if not isinstance(value, dict):
            raise self.error(place, 0, f"expected an object, got {_shown(value)}")
        return JsonFields(value, f"{self._path}.{place}", f"{self._name}{name}.", self._ignored)


def _shown(value: Any) -> str:
    """Return a value of somebody else's in a form fit for an error or a log, and short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is True or value is False:
        return "true" if value else "false"
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
