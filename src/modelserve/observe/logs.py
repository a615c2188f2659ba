"""What the library's loggers let through, and a line per request, by Triton's log settings.

Only loggers below ``modelserve`` are touched; handlers, formats and the root logger are the host's.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from modelserve.errors import InvalidInput, Unsupported
from modelserve.messages import Exchange
from modelserve.protocols import Observer

__all__ = ["AccessLog", "LogSettings", "Observed", "turn_on"]

_NAME: Final = "modelserve"
_ACCESS: Final = logging.getLogger("modelserve.access")
_OWN_LEVEL: Final = ("modelserve.access", "modelserve.trace")
"""Loggers that are on or off by settings of their own."""

_LEVELS: Final[Mapping[str, int]] = {
    "log_info": logging.INFO,
    "log_warning": logging.WARNING,
    "log_error": logging.ERROR,
}
_NAMES: Final = ("log_file", *_LEVELS, "log_verbose_level", "log_format")
_SILENT: Final = logging.CRITICAL + 1
_MOST_VERBOSE: Final = 2**31 - 1
_LONGEST_TEXT: Final = 200


class Observed(Protocol):
    """Hands closed exchanges to observers that come and go, such as a `Recorder`."""

    def add(self, observer: Observer, *, eager: bool = False) -> None:
        """Add an observer; `eager` ones get each exchange as soon as it is closed."""
        ...

    def remove(self, observer: Observer) -> None:
        """Take an observer away; it gets nothing from now on."""
        ...

    def flush(self) -> None:
        """Pass on everything recorded before."""
        ...


def turn_on(logger: logging.Logger) -> None:
    """Have a logger that has settings of its own let INFO pass, whatever its parents do."""
    if logger.level == logging.NOTSET or logger.level > logging.INFO:
        logger.setLevel(logging.INFO)


class AccessLog:
    """Writes a line for each exchange to the logger ``modelserve.access``, at level INFO.

    Example:
        >>> AccessLog.line(Exchange("http", "iris", id="7"))[:52]
        'protocol=http model="iris" version="" code=OK rows=0'
    """

    __slots__ = ()

    def observe(self, exchanges: Sequence[Exchange]) -> None:
        """Write the lines."""
        for exchange in exchanges:
            _ACCESS.info("%s", self.line(exchange))

    @staticmethod
    def line(exchange: Exchange) -> str:
        """Return what is written of an exchange: times in milliseconds, sizes in bytes."""
        fields = {
            "protocol": exchange.protocol,
            "model": _quoted(exchange.model),
            "version": _quoted(exchange.version),
            "code": exchange.code,
            "rows": exchange.rows,
            "batch_rows": exchange.batch_rows,
            "total_ms": f"{exchange.total * 1e3:.3f}",
            "queue_ms": f"{exchange.queue * 1e3:.3f}",
            "run_ms": f"{exchange.run * 1e3:.3f}",
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
            "id": _quoted(exchange.id),
            "principal": _quoted(exchange.principal),
        }
        return " ".join(f"{name}={value}" for name, value in fields.items())


def _quoted(text: str) -> str:
    """Return a caller's text so that it can neither end its line nor fill the log."""
    return json.dumps(text[:_LONGEST_TEXT])


class _Drop(logging.Filter):
    """Lets no record of certain levels pass."""

    def __init__(self, levels: frozenset[int]) -> None:
        super().__init__()
        self.levels = levels

    def filter(self, record: logging.LogRecord) -> bool:
        return _class_of(record.levelno) not in self.levels


def _class_of(level: int) -> int:
    return max((known for known in _LEVELS.values() if known <= level), default=logging.DEBUG)


class LogSettings:
    """Triton's log settings over this process's loggers; any thread may call.

    What is shown is what holds: whether the loggers below ``modelserve`` let a level pass. The
    loggers are the process's, so two repositories in it see the same; the line per request is
    each one's own.

    Args:
        observed: Whose requests are logged.
        fixed: Why the settings cannot be changed here; empty where they can.

    Example:
        >>> from modelserve.observe.recorder import Recorder
        >>> settings = LogSettings(Recorder())
        >>> settings.update({"log_verbose_level": 1})["log_verbose_level"]
        1
        >>> settings.update({"log_verbose_level": 0})["log_verbose_level"]
        0
    """

    __slots__ = ("_access", "_fixed", "_lock", "_observed", "_verbose")

    def __init__(self, observed: Observed, *, fixed: str = "") -> None:
        self._observed = observed
        self._fixed = fixed
        self._access = AccessLog()
        self._verbose = 0
        self._lock = threading.Lock()

    def current(self) -> dict[str, bool | int | str]:
        """Return the settings in force, by Triton's names.

        ``log_file`` is empty, for the host's handlers decide where lines go; ``log_format`` is
        ``"default"``, for they decide how lines look.
        """
        found: dict[str, bool | int | str] = {"log_file": ""}
        found.update(_passing())
        return {**found, "log_verbose_level": self._verbose, "log_format": "default"}

    def update(self, settings: Mapping[str, Any]) -> dict[str, bool | int | str]:
        """Change settings, all of them or none; returns what is in force then.

        Args:
            settings: ``log_info``, ``log_warning`` and ``log_error``: whether the loggers let
                that level pass. ``log_verbose_level``: from 1 on a line is written per request.
                None leaves a setting as it is.

        Raises:
            InvalidInput: A name is unknown or a value of the wrong kind, or it is ``log_file``.
            Unsupported: Another format is asked for, or nothing can be changed here.
        """
        given = {name: value for name, value in settings.items() if _checked(name, value)}
        if self._fixed and given:
            raise Unsupported(self._fixed)
        with self._lock:
            now = _passing()
            levels = {**now, **{name: given[name] for name in _LEVELS if name in given}}
            if levels != now:
                _let_pass(levels)
            if "log_verbose_level" in given:
                self._set_verbose(given["log_verbose_level"])
        return self.current()

    def _set_verbose(self, level: int) -> None:
        before, self._verbose = self._verbose, level
        if level and not before:
            turn_on(_ACCESS)
            self._observed.flush()  # what came before it was turned on
            self._observed.add(self._access, eager=True)
        elif before and not level:
            self._observed.flush()
            self._observed.remove(self._access)


def _checked(name: str, value: Any) -> bool:
    """Return whether there is a value; raise where it is none for this setting."""
    if name not in _NAMES:
        raise InvalidInput(f"there are {', '.join(_NAMES)}", path=f"unknown setting {name[:80]!a}")
    if value is None:
        return False
    if name == "log_file":
        raise InvalidInput(
            "it cannot be changed here: lines go where the handlers of Python's logging send them",
            path=name,
        )
    if name == "log_format":
        if not isinstance(value, str):
            raise InvalidInput(f"expected a string, got {type(value).__name__}", path=name)
        if value == "ISO8601":
            raise Unsupported(
                "log_format: how lines look is up to the handlers of Python's logging; there is "
                'only "default" here'
            )
        if value != "default":
            raise InvalidInput(f'expected "default", got {value[:40]!a}', path=name)
    elif name == "log_verbose_level":
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidInput(f"expected a number, got {type(value).__name__}", path=name)
        if not 0 <= value <= _MOST_VERBOSE:
            raise InvalidInput(f"expected 0 to {_MOST_VERBOSE}, got {value}", path=name)
    elif not isinstance(value, bool):
        raise InvalidInput(f"expected true or false, got {type(value).__name__}", path=name)
    return True


def _loggers() -> Iterator[logging.Logger]:
    """Yield the library's loggers there are; a new one takes its level from the first."""
    yield logging.getLogger(_NAME)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        ours = name.startswith(f"{_NAME}.") and name not in _OWN_LEVEL
        if ours and isinstance(logger, logging.Logger):  # else a place for one
            yield logger


def _drop_of(logger: logging.Logger) -> _Drop | None:
    return next((found for found in logger.filters if isinstance(found, _Drop)), None)


def _passing() -> dict[str, bool]:
    """Return for each level whether every one of our loggers lets it pass."""
    passing = dict.fromkeys(_LEVELS, True)
    for logger in _loggers():
        drop = _drop_of(logger)
        for name, level in _LEVELS.items():
            if not logger.isEnabledFor(level) or (drop is not None and level in drop.levels):
                passing[name] = False
    return passing


def _let_pass(levels: Mapping[str, bool]) -> None:
    """Have our loggers let these levels pass, and no others."""
    lowest = min((_LEVELS[name] for name, on in levels.items() if on), default=_SILENT)
    # A level is a threshold. What is off above it takes a filter, on each logger: those of a
    # parent see nothing of what its children log.
    dropped = frozenset(n for name, n in _LEVELS.items() if n > lowest and not levels[name])
    for logger in _loggers():
        drop = _drop_of(logger)
        if drop is not None:
            logger.removeFilter(drop)
        if dropped:
            logger.addFilter(_Drop(dropped))
        logger.setLevel(lowest if logger.name == _NAME else logging.NOTSET)
