"""Traces of single requests, in Triton's form and by its settings.

A trace is one line of JSON, at level INFO of the logger ``modelserve.trace``. The lines of a log
within brackets, with commas between, are the file that Triton writes.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Final

from modelserve.errors import InvalidInput, Unsupported
from modelserve.messages import Exchange
from modelserve.observe.logs import Observed, turn_on

__all__ = ["TraceSettings", "trace_of"]

_LOG: Final = logging.getLogger("modelserve.trace")

_NAMES: Final = (
    "trace_file",
    "trace_level",
    "trace_rate",
    "trace_count",
    "log_frequency",
    "trace_mode",
)
_MOST_RATE: Final = 2**32 - 1
_MOST_COUNT: Final = 2**31 - 1
_MOST_HELD: Final = 1000
_MOST_MODELS: Final = 1024


class _Settings:
    """Settings of one model, or of all: None where those of all hold."""

    __slots__ = ("frequency", "held", "left", "on", "rate", "seen")

    def __init__(
        self,
        on: bool | None = None,
        rate: int | None = None,
        left: int | None = None,
        frequency: int | None = None,
    ) -> None:
        self.on = on
        self.rate = rate
        self.left = left
        """Traces still to be made; -1 for any number."""
        self.frequency = frequency
        self.seen = 0
        """Requests since the settings were made."""
        self.held: list[str] = []
        """Traces that wait for others to be logged with."""

    @property
    def empty(self) -> bool:
        return self.on is self.rate is self.left is self.frequency is None


def _initial() -> _Settings:
    return _Settings(False, 1000, -1, 0)


class TraceSettings:
    """Triton's trace settings over the requests of one repository or server; any thread may call.

    Off, it costs a request nothing. On, every so many requests that reached a model become a
    trace each, on the thread that closed the request.

    Args:
        observed: Whose requests are traced.
        fixed: Why the settings cannot be changed here; empty where they can.

    Example:
        >>> from modelserve.observe.recorder import Recorder
        >>> settings = TraceSettings(Recorder())
        >>> settings.update({"trace_level": ["TIMESTAMPS"], "trace_rate": "1"})["trace_count"]
        '-1'
        >>> settings.current("iris")["trace_rate"]
        '1'
    """

    __slots__ = ("_all", "_fixed", "_ids", "_lock", "_models", "_observed", "_on", "_updating")

    def __init__(self, observed: Observed, *, fixed: str = "") -> None:
        self._observed = observed
        self._fixed = fixed
        self._all = _initial()
        self._models: dict[str, _Settings] = {}
        self._on = False
        self._ids = count(1)
        self._lock = threading.Lock()
        self._updating = threading.Lock()

    def current(self, model: str = "") -> dict[str, str | list[str]]:
        """Return the settings in force, by Triton's names.

        Args:
            model: Name of a model; empty for those that hold where a model has none of its own.

        ``trace_count`` is how many traces are still to be made. ``trace_file`` is empty: traces
        go to a logger.
        """
        with self._lock:
            mine = self._models.get(model, self._all) if model else self._all
            on, rate, owner, frequency = self._effective(mine)
            return {
                "trace_file": "",
                "trace_level": ["TIMESTAMPS" if on else "OFF"],
                "trace_rate": str(rate),
                "trace_count": str(owner.left),
                "log_frequency": str(frequency),
                "trace_mode": "triton",
            }

    def update(self, settings: Mapping[str, Any], model: str = "") -> dict[str, str | list[str]]:
        """Change settings, all of them or none; returns what is in force then.

        Args:
            settings: ``trace_level``: ``["TIMESTAMPS"]`` or ``["OFF"]``. ``trace_rate``: of so many
                requests one is traced. ``trace_count``: so many traces are made, -1 for any
                number. ``log_frequency``: so many traces are logged together, 0 and 1 for each at
                once. Numbers may be text. None takes a setting back: to its default, or for a model
                to what holds for all.
            model: Name of a model; empty for all that have no settings of their own.

        Raises:
            InvalidInput: A name is unknown or a value of the wrong kind, or it is ``trace_file``.
            Unsupported: Tensors are to be traced, or another mode is asked for, or nothing can be
                changed here.
        """
        given = {name: _checked(name, value) for name, value in settings.items()}
        if self._fixed and given:
            raise Unsupported(self._fixed)
        with self._updating:
            with self._lock:
                lines = self._apply(given, model)
                on = bool(self._all.on) or any(one.on for one in self._models.values())
            _emit(lines)
            self._switch(on)
        return self.current(model)

    def flush(self) -> None:
        """Log the traces that wait for others."""
        with self._lock:
            lines = [line for one in (self._all, *self._models.values()) for line in _taken(one)]
        _emit(lines)

    def observe(self, exchanges: Sequence[Exchange]) -> None:
        """Make the traces that are due; called by what is observed."""
        with self._lock:
            lines = [line for exchange in exchanges for line in self._lines(exchange)]
        _emit(lines)

    def _apply(self, given: Mapping[str, Any], model: str) -> list[str]:
        """Change the settings of a model, or of all; returns traces that are to be logged now."""
        if not given:
            return []
        if not model:
            mine, base = self._all, _initial()
        else:
            if model not in self._models and len(self._models) >= _MOST_MODELS:
                raise InvalidInput(
                    f"at most {_MOST_MODELS} models have trace settings", path="model"
                )
            mine, base = self._models.setdefault(model, _Settings()), _Settings()
        for name, member in _MEMBERS.items():
            if name in given:
                value = given[name]
                setattr(mine, member, getattr(base, member) if value is None else value)
        mine.seen = 0
        lines = _taken(mine)
        if model and mine.empty:
            del self._models[model]
        return lines

    def _switch(self, on: bool) -> None:
        if on and not self._on:
            turn_on(_LOG)
            self._observed.flush()  # what came before it was turned on
            self._observed.add(self, eager=True)
        elif self._on and not on:
            self._observed.remove(self)
        self._on = on

    def _effective(self, mine: _Settings) -> tuple[bool, int, _Settings, int]:
        """Return what holds: on or off, rate, whose count is used up, and frequency."""
        every = self._all
        return (
            bool(every.on if mine.on is None else mine.on),
            (mine.rate or every.rate) or 1,
            every if mine.left is None else mine,
            (every.frequency if mine.frequency is None else mine.frequency) or 0,
        )

    def _lines(self, exchange: Exchange) -> list[str]:
        """Return the traces to be logged now that an exchange is closed."""
        # What never found its model is nothing a model's settings could speak of.
        if not exchange.version or exchange.code == "NOT_FOUND":
            return []
        mine = self._models.get(exchange.model, self._all)
        on, rate, owner, frequency = self._effective(mine)
        if not on or owner.left == 0:
            return []
        mine.seen += 1
        if mine.seen % rate:
            return []
        if owner.left is not None and owner.left > 0:
            owner.left -= 1
        document = {"id": next(self._ids), **trace_of(exchange)}
        mine.held.append(json.dumps(document, separators=(",", ":")))
        # The last one there is to be would wait forever.
        return _taken(mine) if len(mine.held) >= frequency or owner.left == 0 else []


_MEMBERS: Final = {
    "trace_level": "on",
    "trace_rate": "rate",
    "trace_count": "left",
    "log_frequency": "frequency",
}


def _taken(settings: _Settings) -> list[str]:
    held, settings.held = settings.held, []
    return held


def _emit(lines: Sequence[str]) -> None:
    for line in lines:
        _LOG.info("%s", line)


def trace_of(exchange: Exchange) -> dict[str, Any]:
    """Return the trace of a closed exchange, in Triton's form.

    Times are nanoseconds of `time.perf_counter`. A request that never ran has no times of a
    queue or a run. Copying inputs and outputs is not timed apart from the run:
    ``COMPUTE_INPUT_END`` is where it starts, ``COMPUTE_OUTPUT_START`` where it ends.
    """
    points = [("REQUEST_START", exchange.started)]
    batch = exchange.batch
    if batch is not None:
        points.append(("QUEUE_START", exchange.enqueued))
        if batch.rows:
            end = batch.started + batch.run
            points += [
                ("COMPUTE_START", batch.started),
                ("COMPUTE_INPUT_END", batch.started),
                ("COMPUTE_OUTPUT_START", end),
                ("COMPUTE_END", end),
            ]
    points.append(("REQUEST_END", exchange.started + exchange.total))
    version = exchange.version
    return {
        "model_name": exchange.model,
        "model_version": int(version) if version.isascii() and version.isdigit() else version,
        "request_id": exchange.id,
        "code": exchange.code,
        "timestamps": [{"name": name, "ns": round(at * 1e9)} for name, at in points],
    }


def _checked(name: str, value: Any) -> bool | int | None:
    """Return a setting's value as it is kept; None takes it back."""
    if name not in _NAMES:
        raise InvalidInput(f"there are {', '.join(_NAMES)}", path=f"unknown setting {name[:80]!a}")
    if name == "trace_file":
        raise InvalidInput(
            "it cannot be changed here: traces go to the logger modelserve.trace",
            path=name,
        )
    if value is None:
        return None
    if name == "trace_level":
        return _level(value)
    if name == "trace_mode":
        _check_mode(value)
        return None
    low, high = {
        "trace_rate": (1, _MOST_RATE),
        "trace_count": (-1, _MOST_COUNT),
        "log_frequency": (0, _MOST_HELD),
    }[name]
    return _number(name, value, low, high)


def _level(value: Any) -> bool:
    levels = [value] if isinstance(value, str) else value
    if not isinstance(levels, list | tuple) or not levels:
        raise InvalidInput('expected a list such as ["TIMESTAMPS"]', path="trace_level")
    for index, level in enumerate(levels):
        if level == "TENSORS":
            raise Unsupported(
                "trace_level: tensors are not traced here, for they are the callers' data; "
                "expected OFF or TIMESTAMPS"
            )
        if level not in ("OFF", "TIMESTAMPS"):
            said = f"{level[:40]!a}" if isinstance(level, str) else type(level).__name__
            raise InvalidInput(
                f"expected OFF or TIMESTAMPS, got {said}", path=f"trace_level[{index}]"
            )
    if "OFF" in levels and len(levels) > 1:
        raise InvalidInput("expected OFF alone", path="trace_level")
    return "OFF" not in levels


def _check_mode(value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidInput(f"expected a string, got {type(value).__name__}", path="trace_mode")
    if value != "triton":
        raise Unsupported(f'trace_mode: expected "triton", got {value[:40]!a}')


def _number(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, str):
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
            raise InvalidInput(f"expected a whole number, got {value[:40]!a}", path=name)
        value = int(value)
    if type(value) is not int:
        raise InvalidInput(
            f"expected a whole number as text, got {type(value).__name__}", path=name
        )
    if not low <= value <= high:
        raise InvalidInput(f"expected {low} to {high}, got {value}", path=name)
    return int(value)
