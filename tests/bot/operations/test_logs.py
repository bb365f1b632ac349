"""Logging: one line a record, no secrets, and third parties kept from logging what people wrote."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from engine.logs import configure_logging, set_level


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """Restore what `configure_logging` changes for the whole process."""
    names = ("", "bot", "engine", "storage")
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = list(logging.getLogger().handlers)
    yield io.StringIO()
    logging.captureWarnings(False)
    logging.getLogger().handlers = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_record_is_one_line_with_level_and_origin_even_with_a_traceback(output: io.StringIO) -> None:
    configure_logging(logging.INFO, stream=output)
    try:
        raise TypeError("first\nsecond")
    except TypeError:
        logging.getLogger("bot.conversation.service").exception("It broke\nbadly")
    (line,) = output.getvalue().splitlines()
    assert "ERROR   bot.conversation.service: It broke | badly | Traceback" in line
    assert line.endswith("TypeError: first | second")
    assert line[10] == "T"


def test_the_token_and_webhook_tokens_are_replaced(output: io.StringIO) -> None:
    configure_logging(logging.INFO, secret="abc.def.ghi", stream=output)
    log = logging.getLogger("discord.http")
    log.warning("rejected %s at /webhooks/12/a-Token_x/messages", "abc.def.ghi")
    assert "rejected [hidden] at /webhooks/12/[hidden]/messages" in output.getvalue()


def test_debug_is_for_our_own_packages_only(output: io.StringIO) -> None:
    configure_logging(logging.DEBUG, stream=output)
    logging.getLogger("aiosqlite").debug("INSERT private words")
    logging.getLogger("discord.gateway").debug("private words")
    logging.getLogger("engine.runtime.worker").debug("step")
    assert "private" not in output.getvalue()
    assert "step" in output.getvalue()


def test_discords_library_does_not_complain_about_voice(output: io.StringIO) -> None:
    configure_logging(logging.INFO, stream=output)
    logging.getLogger("discord.client").warning("PyNaCl is not installed, voice will NOT be supported")
    logging.getLogger("discord.client").warning("something else")
    assert "voice" not in output.getvalue()
    assert "something else" in output.getvalue()


def test_single_requests_of_a_download_are_not_told(output: io.StringIO) -> None:
    configure_logging(logging.INFO, stream=output)
    logging.getLogger("httpx2").info('HTTP Request: GET https://huggingface.co "HTTP/1.1 200 OK"')
    logging.getLogger("httpx2").warning("something else")
    assert "HTTP Request" not in output.getvalue()
    assert "something else" in output.getvalue()


def test_a_higher_level_silences_everybody_below_it(output: io.StringIO) -> None:
    configure_logging(logging.ERROR, stream=output)
    logging.getLogger("discord").warning("a")
    logging.getLogger("bot").warning("b")
    assert output.getvalue() == ""


def test_configuring_twice_does_not_log_twice(output: io.StringIO) -> None:
    configure_logging(logging.INFO, stream=io.StringIO())
    configure_logging(logging.INFO, stream=output)
    logging.getLogger("bot").info("once")
    assert output.getvalue().count("once") == 1


def test_as_json_a_record_is_one_object_without_secrets(output: io.StringIO) -> None:
    configure_logging(logging.INFO, secret="abc.def.ghi", stream=output, as_json=True)
    try:
        raise TypeError("first\nsecond")
    except TypeError:
        logging.getLogger("bot.app").exception('It "broke" with %s', "abc.def.ghi")
    (line,) = output.getvalue().splitlines()
    read = json.loads(line)
    assert (read["level"], read["origin"]) == ("error", "bot.app")
    assert read["message"] == 'It "broke" with [hidden]'
    assert read["exception"].endswith("TypeError: first\nsecond")
    assert read["time"].endswith("+00:00")


def test_the_level_can_be_changed_later(output: io.StringIO) -> None:
    configure_logging(logging.ERROR, stream=output)
    set_level(logging.DEBUG)
    logging.getLogger("bot").debug("ours")
    logging.getLogger("discord").debug("theirs")
    assert "ours" in output.getvalue()
    assert "theirs" not in output.getvalue()
