"""Blocked people: by server, recorded once, let go again."""

from __future__ import annotations

from datetime import timedelta

from storage.database import Database
from storage.moderation import Block, Blocks
from tests.storage.conftest import NOW


async def test_a_block_holds_on_its_server_only(database: Database) -> None:
    blocks = Blocks(database)
    assert await blocks.add(1, 7, by_user_id=9, at=NOW)
    assert await blocks.is_blocked(1, 7)
    assert not await blocks.is_blocked(2, 7)
    assert not await blocks.is_blocked(1, 8)
    assert not await blocks.remove(2, 7)
    assert await blocks.remove(1, 7)
    assert not await blocks.is_blocked(1, 7)
    assert not await blocks.remove(1, 7)


async def test_who_blocked_first_stays_recorded(database: Database) -> None:
    blocks = Blocks(database)
    await blocks.add(1, 7, by_user_id=9, at=NOW)
    assert not await blocks.add(1, 7, by_user_id=10, at=NOW + timedelta(days=1))
    assert await blocks.newest(1, 10) == [Block(7, 9, NOW)]


async def test_the_newest_come_first(database: Database) -> None:
    blocks = Blocks(database)
    for number in range(5):
        await blocks.add(1, number, by_user_id=9, at=NOW + timedelta(seconds=number))
    await blocks.add(2, 99, by_user_id=9, at=NOW)
    assert [block.user_id for block in await blocks.newest(1, 3)] == [4, 3, 2]
