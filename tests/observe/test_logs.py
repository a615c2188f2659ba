"""Log settings: what they show is what happens."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelserve.errors import InvalidInput, Unsupported
from modelserve.messages import BatchRecord, Exchange
from modelserve.observe.logs import AccessLog, LogSettings
from modelserve.observe.recorder import Recorder

SOURCE = Path(__file__).parents[2] / "src" / "modelserve"
LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Put the process's loggers back, and let the root be as a host's that says nothing."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("modelserve")]
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    filters = {logger: list(logger.filters) for logger, _ in before}
    main = logging.getLogger("modelserve")
    level = main.level
    for logger, _ in before:
        logger.setLevel(logging.NOTSET)
    root = logging.getLogger().level
    logging.getLogger().setLevel(logging.WARNING)
    yield
    logging.getLogger().setLevel(root)
    for logger, number in before:
        logger.setLevel(number)
        logger.filters = filters[logger]
    main.setLevel(level)
    main.filters = []


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def settings(recorder: Recorder) -> LogSettings:
    return LogSettings(recorder)


def passing(caplog: Any) -> dict[str, bool]:
    """Return what comes through, of loggers that the library uses."""
    found = {}
    for name, level in LEVELS.items():
        seen = []
        for logger in ("modelserve.repository", "modelserve.execution", "modelserve"):
            caplog.clear()
            logging.getLogger(logger).log(level, "said")
            seen.append(bool(caplog.records))
        assert len(set(seen)) == 1
        found[name] = seen[0]
    return found


def test_what_is_shown_at_first_is_the_hosts(settings: LogSettings) -> None:
    assert settings.current() == {
        "log_file": "",
        "log_info": False,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }


@pytest.mark.parametrize("info", [False, True])
@pytest.mark.parametrize("warning", [False, True])
@pytest.mark.parametrize("error", [False, True])
def test_every_choice_of_levels_is_in_force(
    settings: LogSettings, caplog: Any, info: bool, warning: bool, error: bool
) -> None:
    wanted = {"log_info": info, "log_warning": warning, "log_error": error}
    shown = settings.update(wanted)
    assert {name: shown[name] for name in LEVELS} == wanted
    assert passing(caplog) == wanted
    settings.update({"log_info": True, "log_warning": True, "log_error": True})
    assert passing(caplog) == dict.fromkeys(LEVELS, True)


def test_a_level_changes_alone(settings: LogSettings, caplog: Any) -> None:
    settings.update({"log_error": False})
    assert passing(caplog) == {"log_info": False, "log_warning": True, "log_error": False}


def test_the_root_and_its_handlers_are_let_be(settings: LogSettings) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), [h.level for h in root.handlers], root.filters)
    settings.update({"log_info": True, "log_warning": False, "log_verbose_level": 1})
    assert before == (
        root.level,
        list(root.handlers),
        [h.level for h in root.handlers],
        root.filters,
    )
    settings.update({"log_verbose_level": 0})


def test_what_the_host_set_itself_is_shown(settings: LogSettings) -> None:
    logging.getLogger("modelserve").setLevel(logging.ERROR)
    assert settings.current()["log_warning"] is False
    logging.getLogger("modelserve").setLevel(logging.INFO)
    logging.getLogger("modelserve.repository").setLevel(logging.ERROR)
    assert settings.current()["log_info"] is False
    settings.update({"log_info": True})
    assert logging.getLogger("modelserve.repository").isEnabledFor(logging.INFO)


def test_unchanged_levels_leave_the_hosts_be(settings: LogSettings) -> None:
    logging.getLogger("modelserve").setLevel(logging.DEBUG)
    settings.update({"log_info": True, "log_verbose_level": 0})
    assert logging.getLogger("modelserve").level == logging.DEBUG


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"log_file": "x"}, "log_file: it cannot be changed here"),
        ({"log_info": 1}, "log_info: expected true or false, got int"),
        ({"log_warning": "true"}, "log_warning: expected true or false, got str"),
        ({"log_error": []}, "log_error: expected true or false, got list"),
        ({"log_verbose_level": True}, "log_verbose_level: expected a number, got bool"),
        ({"log_verbose_level": "1"}, "log_verbose_level: expected a number, got str"),
        ({"log_verbose_level": -1}, "log_verbose_level: expected 0 to"),
        ({"log_verbose_level": 2**40}, "log_verbose_level: expected 0 to"),
        ({"log_format": 1}, "log_format: expected a string, got int"),
        ({"log_format": "xml"}, "log_format: expected \"default\", got 'xml'"),
        ({"log_warnings": True}, "unknown setting 'log_warnings': there are log_file, log_info"),
        ({"x" * 999: True}, "unknown setting 'xxxx"),
    ],
    ids=range(12),
)
def test_unfit_setting_is_refused_and_changes_none(
    settings: LogSettings, given: dict[str, Any], said: str
) -> None:
    before = settings.current()
    with pytest.raises(InvalidInput) as caught:
        settings.update({"log_info": True, **given} if "log_info" not in given else given)
    assert str(caught.value).startswith(said)
    assert len(str(caught.value)) < 300
    assert settings.current() == before


def test_a_format_that_is_not_ours_to_choose_is_refused(settings: LogSettings) -> None:
    with pytest.raises(Unsupported, match="up to the handlers"):
        settings.update({"log_format": "ISO8601"})
    assert settings.update({"log_format": "default"})["log_format"] == "default"


def test_none_leaves_a_setting_as_it_is(settings: LogSettings) -> None:
    before = settings.current()
    assert settings.update(dict.fromkeys(before)) == before


def test_a_line_per_request_while_it_is_on(
    settings: LogSettings, recorder: Recorder, caplog: Any
) -> None:
    recorder.record(Exchange("http", "before"))
    assert settings.update({"log_verbose_level": 2})["log_verbose_level"] == 2
    recorder.record(Exchange("http", "one"))
    recorder.record(Exchange("http", "two"))
    assert [record.name for record in caplog.records] == ["modelserve.access"] * 2
    assert [record.levelname for record in caplog.records] == ["INFO"] * 2
    assert 'model="one"' in caplog.messages[0]
    settings.update({"log_verbose_level": 0})
    recorder.record(Exchange("http", "after"))
    recorder.flush()
    assert len(caplog.records) == 2
    assert not recorder.observed


def test_the_line_has_nothing_to_do_with_the_other_levels(
    settings: LogSettings, recorder: Recorder, caplog: Any
) -> None:
    off = {"log_info": False, "log_warning": False, "log_error": False}
    settings.update({**off, "log_verbose_level": 1})
    recorder.record(Exchange("http", "one"))
    assert len(caplog.records) == 1
    settings.update({"log_verbose_level": 0})


def test_two_repositories_have_lines_of_their_own(caplog: Any) -> None:
    one, two = Recorder(), Recorder()
    settings = LogSettings(one)
    settings.update({"log_verbose_level": 1})
    two.record(Exchange("http", "other"))
    two.flush()
    one.record(Exchange("http", "mine"))
    assert len(caplog.records) == 1
    assert LogSettings(two).current()["log_verbose_level"] == 0
    settings.update({"log_verbose_level": 0})


def test_settings_that_are_fixed_say_why(recorder: Recorder) -> None:
    fixed = LogSettings(recorder, fixed="there are several processes")
    assert fixed.update({}) == fixed.current()
    with pytest.raises(Unsupported, match="there are several processes"):
        fixed.update({"log_info": True})


def test_a_callers_text_cannot_end_its_line() -> None:
    exchange = Exchange("http", "m\nFAKE", id='a"\r\n\x1b[31m' + "x" * 5000)
    exchange.principal = "p\u2028q"
    line = AccessLog.line(exchange)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 1000


def test_the_line_tells_times_and_sizes() -> None:
    exchange = Exchange("http", "iris", id="7")
    exchange.version, exchange.rows, exchange.bytes_in, exchange.bytes_out = "3", 2, 10, 20
    exchange.total, exchange.enqueued = 0.25, 1.0
    exchange.batch = BatchRecord(8, 3, "idle", 1.5, 0.125)
    exchange.principal = "shop"
    assert AccessLog.line(exchange) == (
        'protocol=http model="iris" version="3" code=OK rows=2 batch_rows=8 total_ms=250.000 '
        'queue_ms=500.000 run_ms=125.000 bytes_in=10 bytes_out=20 id="7" principal="shop"'
    )
    assert json.loads(AccessLog.line(exchange).split("id=")[1].split()[0]) == "7"


def test_every_logger_of_the_library_is_below_modelserve() -> None:
    named = re.compile(r"getLogger\((.*?)\)")
    found = {
        name
        for path in SOURCE.rglob("*.py")
        if "cli" not in path.parts
        for name in named.findall(path.read_text(encoding="utf-8"))
    }
    known = {"__name__", "", "_NAME"}  # the module's; a process of its own; settings of them all
    assert {name for name in found if not name.startswith('"modelserve')} <= known
