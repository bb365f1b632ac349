"""One id in the log tells the whole way of a question, and no other question's."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest

from engine.logs import JsonFormatter, LineFormatter
from engine.tracing import current_trace, note_trace
from tests.bot.e2e.world import World


@pytest.fixture
def log() -> Iterator[StringIO]:
    """Give what an operator sees at INFO."""
    output = StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(LineFormatter(None))
    handler.addFilter(note_trace)
    ours = logging.getLogger("bot")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield output
    ours.removeHandler(handler)
    ours.setLevel(level)


def ways(log: StringIO) -> dict[str, list[str]]:
    """Return the lines by the ids that they carry, without figures."""
    found: dict[str, list[str]] = {}
    for line in log.getvalue().splitlines():
        if match := re.search(r"\[([0-9a-f]{16})\]: (.*)", line):
            found.setdefault(match[1], []).append(re.sub(r"[\d.]+", "N", match[2]))
    return found


THE_WAY = [
    "Answer N: its question was written N s ago",
    "Answer N: the engine begins",
    "Answer N is complete: N tokens read, N cached; N s to first, N in N s",
    "Answer N: its last edit is done: shown",
]


async def test_the_id_of_a_question_finds_its_way_from_message_to_last_edit(
    world: World, log: StringIO
) -> None:
    world.answers("Hello", " there", "!")
    await world.anna.send(world.general, f"{world.me} what is a secret")
    await world.run(4)
    assert list(ways(log).values()) == [THE_WAY]
    assert "secret" not in log.getvalue()


async def test_questions_that_wait_for_each_other_keep_their_own_ids(world: World, log: StringIO) -> None:
    """The second one of a conversation is begun by the end of the first one."""
    world.answers("Hello", " there", "!")
    for person in (world.anna, world.bob):
        await person.send(world.general, f"{world.me} hi")
    await world.run(12)
    found = ways(log)
    assert len(found) == 2
    assert list(found.values()) == [THE_WAY, THE_WAY]
    numbers = [set(re.findall(rf"\[{trace}\]: Answer (\d+)", log.getvalue())) for trace in found]
    assert [len(of_one) for of_one in numbers] == [1, 1]
    assert numbers[0] != numbers[1]


async def test_the_engine_is_asked_under_the_id_of_the_question(world: World, log: StringIO) -> None:
    seen: list[str] = []
    generate = world.engine.generate

    def noting(*given: Any, **named: Any) -> Any:
        seen.append(current_trace())
        return generate(*given, **named)

    world.engine.generate = noting  # type: ignore[method-assign]
    world.answers("Hello")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(3)
    assert seen == list(ways(log))


def test_json_carries_the_id_too_and_what_belongs_to_no_question_has_none() -> None:
    record = logging.LogRecord("bot.x", logging.INFO, "", 0, "said", (), None)
    assert note_trace(record)
    assert "trace" not in json.loads(JsonFormatter(None).format(record))
    assert LineFormatter(None).format(record).endswith("bot.x: said")
    record.trace = "00ff"
    assert json.loads(JsonFormatter(None).format(record))["trace"] == "00ff"
