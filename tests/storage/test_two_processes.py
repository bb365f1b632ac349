"""Two processes do at once whatever people do, on one database of either kind: nothing contradicts itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from storage.address import Location
from storage.conversations import ConversationKind, ConversationRef, Conversations, MessageState
from storage.database import Database
from storage.errors import DuplicateMessageError, NotFoundError
from storage.people import People
from storage.settings import SettingsStore
from storage.turns import NewQuestion
from tests.storage.conftest import NOW

EXPECTED = (NotFoundError, DuplicateMessageError)
REFS = tuple(ConversationRef(number, ConversationKind.CHANNEL, 7) for number in (1, 2))
USERS = (1, 2, 3)
NUM_ROUNDS = 25
AT_ONCE = 6


class Process:
    """One process, and what it may do next to anything that it finds."""

    def __init__(self, database: Database, chance: random.Random, start: int) -> None:
        self.conversations = Conversations(database, now=lambda: NOW)
        self._people = People(database)
        self._settings = SettingsStore(database)
        self._database = database
        self._chance = chance
        self._next_id = start

    async def act(self) -> None:
        """Do something; refusals are part of life."""
        works: list[Callable[[], Awaitable[object]]] = [
            *[self._ask] * 4, self._ask_on, *[self._finish] * 4, self._regenerate, self._continue, self._show,
            self._delete, self._undo, self._reset, self._bring_back, self._set, self._edit, self._sum_up,
        ]  # fmt: skip
        try:
            await self._chance.choice(works)()
        except EXPECTED:
            return

    async def forget(self) -> None:
        """Forget a person."""
        await self._people.forget(self._chance.choice(USERS))

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    async def _place(self) -> int:
        return await self.conversations.open(self._chance.choice(REFS))

    async def _one(self, condition: str) -> int:
        sql = f"SELECT id FROM messages WHERE {condition} ORDER BY id DESC LIMIT 4"  # noqa: S608
        rows = await self._database.fetch_all(sql)
        if not rows:
            raise NotFoundError
        return int(self._chance.choice(rows)["id"])

    async def _shown(self) -> int:
        rows = await self._database.fetch_all("SELECT * FROM discord_messages ORDER BY 1 DESC LIMIT 6")
        if not rows:
            raise NotFoundError
        return int(self._chance.choice(rows)["discord_id"])

    async def _ask(self) -> None:
        # Now and then a message that the other one gets too.
        discord_id = 5 + self._chance.randrange(10) if self._chance.random() < 0.2 else self._new_id()
        author_id = self._chance.choice(USERS)
        place = await self._place()
        await self.conversations.begin_turn(
            place, discord_id=discord_id, author_id=author_id, author_name="", content="Why?", created_at=NOW
        )

    async def _ask_on(self) -> None:
        answer_id = await self._one("state = 'pending'")
        question = NewQuestion(self._new_id(), self._chance.choice(USERS), "", "And?", NOW)
        await self.conversations.turns.ask_on(answer_id, question)

    async def _finish(self) -> None:
        answer_id = await self._one("state = 'pending'")
        content = self._chance.choice(("So.", ""))
        await self.conversations.finish_answer(
            answer_id, content=content, state=MessageState.STOPPED, finish_reason=None,
            num_prompt_tokens=None, num_tokens=None,
        )  # fmt: skip

    async def _regenerate(self) -> None:
        await self.conversations.begin_regeneration(await self._one("role = 'assistant'"))

    async def _continue(self) -> None:
        await self.conversations.turns.begin_continuation(await self._one("role = 'assistant'"))

    async def _show(self) -> None:
        await self.conversations.attach_part(await self._one("role = 'assistant'"), self._new_id(), 0)

    async def _delete(self) -> None:
        discord_id = await self._shown()
        await self.conversations.detach_part(discord_id)
        await self.conversations.delete_question(discord_id)

    async def _undo(self) -> None:
        await self.conversations.turns.undo(await self._one("role = 'assistant'"))

    async def _reset(self) -> None:
        await self.conversations.reset(await self._place(), by_user_id=1, at=NOW)

    async def _bring_back(self) -> None:
        reset = await self.conversations.newest_reset(await self._place())
        if reset is not None:
            await self.conversations.undo_reset(reset.id, by_user_id=1, at=NOW, not_before=NOW)

    async def _set(self) -> None:
        await self._settings.set(
            await self._place(), "top_k", self._chance.randrange(9), by_user_id=1, at=NOW
        )

    async def _edit(self) -> None:
        await self.conversations.turns.edit_question(await self._shown(), str(self._chance.random()))

    async def _sum_up(self) -> None:
        place = await self._place()
        messages = await self.conversations.recent(place, 2)
        if messages:
            await self.conversations.summaries.add(place, messages, messages[-1].id, "In short.")


RULES = {
    "an answer stands below a question of another conversation": """
        SELECT 1 FROM messages AS answer JOIN messages AS question ON question.id = answer.reply_to
        WHERE question.conversation_id <> answer.conversation_id OR question.role <> 'user'""",
    "an answer gives way to one that has ended, or of another conversation": """
        SELECT 1 FROM messages AS old JOIN messages AS new ON new.id = old.superseded_by
        WHERE new.state <> 'pending' OR new.conversation_id <> old.conversation_id""",
    "two answers give way to the same one": """
        SELECT superseded_by FROM messages WHERE superseded_by IS NOT NULL
        GROUP BY superseded_by HAVING COUNT(*) > 1""",
    "two answers that stand answer the same question": """
        SELECT reply_to FROM messages WHERE role = 'assistant' AND superseded_by IS NULL
        GROUP BY reply_to HAVING COUNT(*) > 1""",
    "there is a gap between the parts of an answer": """
        SELECT message_id FROM discord_messages GROUP BY message_id
        HAVING MIN(position) <> 0 OR MAX(position) <> COUNT(*) - 1""",
    "an ending is owed of an answer that is being written": """
        SELECT 1 FROM unshown_endings JOIN messages ON messages.id = answer_id WHERE state = 'pending'""",
    "a summary stands of a message that is gone": """
        SELECT 1 FROM summaries WHERE NOT EXISTS (SELECT 1 FROM summed_up WHERE summary_id = summaries.id)""",
    "a shelf belongs to no reset": """
        SELECT 1 FROM conversations WHERE channel_id < 0
        AND NOT EXISTS (SELECT 1 FROM resets WHERE shelf_id = conversations.id)""",
}
"""What would be wrong, and how it is found."""


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_contradicts_itself_whatever_two_processes_do_at_once(
    location: Location, seed: int
) -> None:
    chance = random.Random(seed)
    async with await Database.open(location) as one, await Database.open(location) as other:
        processes = (Process(one, chance, 10_000), Process(other, chance, 20_000))
        for number in range(NUM_ROUNDS):
            works = [process.act() for process in processes for _ in range(AT_ONCE)]
            if number % 10 == 9:
                works.append(processes[0].forget())
            await asyncio.gather(*works)
            for wrong, sql in RULES.items():
                assert not await one.fetch_all(sql), (wrong, number)
        assert await one.fetch_all("SELECT 1 FROM messages")
