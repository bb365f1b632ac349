"""The system prompt of a conversation under the operator's guidance: shown, set, bounded, kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.conversation.preferences import Preferences
from bot.conversation.system_prompts import SystemPrompt, SystemPrompts
from bot.errors import ParameterError, SystemPromptError
from bot.parameters import ChatParameters, Guidance, GuidanceChoice
from engine.text.guidance import META_SYSTEM_PROMPT
from storage.conversations import ConversationKind, ConversationRef, Conversations
from storage.database import Database
from storage.settings import SettingsStore
from tests.fakes import ScriptedEngine

HERE = ConversationRef(1, ConversationKind.CHANNEL, 2)
SAFE = ChatParameters(guidance=Guidance(GuidanceChoice.SAFE))
REPLACEABLE = ChatParameters(guidance=Guidance(GuidanceChoice.SAFE, is_kept=False))
META_TOKENS = len(META_SYSTEM_PROMPT)


@pytest.fixture
async def preferences(tmp_path: Path) -> AsyncIterator[Preferences]:
    async with await Database.open(tmp_path / "test.sqlite3") as database:
        yield Preferences(ScriptedEngine(), Conversations(database), SettingsStore(database), SAFE)


@pytest.fixture
def prompts(preferences: Preferences) -> SystemPrompts:
    conversations, settings = preferences._conversations, preferences._settings
    return SystemPrompts(preferences, preferences._engine, conversations, settings)


async def test_a_conversations_text_follows_the_guidance_and_is_counted_with_it(
    preferences: Preferences, prompts: SystemPrompts
) -> None:
    cost = await prompts.set(HERE, "Rhyme.", by_user_id=1)
    assert cost.num_tokens == META_TOKENS + len("\n\nRhyme.")
    told = await prompts.read(HERE)
    assert told == SystemPrompt(f"{META_SYSTEM_PROMPT}\n\nRhyme.", "Rhyme.", is_guided=True)
    assert told.origin == "set for this conversation"
    preferences.defaults = REPLACEABLE
    assert await prompts.read(HERE) == SystemPrompt("Rhyme.", "Rhyme.", is_guided=False)


async def test_presets(preferences: Preferences, prompts: SystemPrompts) -> None:
    assert (await prompts.set_preset(HERE, " None ", by_user_id=1)).num_tokens == META_TOKENS
    none = await prompts.read(HERE)
    assert none == SystemPrompt(META_SYSTEM_PROMPT, "", is_guided=True)
    assert none.origin == "the preset none"
    preferences.defaults = REPLACEABLE
    assert (await prompts.read(HERE)).text == ""
    assert (await prompts.set_preset(HERE, "safe", by_user_id=1)).num_tokens == META_TOKENS
    safe = await prompts.read(HERE)
    assert (safe.text, safe.origin, safe.is_guided) == (META_SYSTEM_PROMPT, "the preset safe", False)
    assert await prompts.clear(HERE, by_user_id=1)
    assert (await prompts.read(HERE)).origin == "the default"


async def test_an_unknown_preset_is_answered_with_those_there_are(
    preferences: Preferences, prompts: SystemPrompts
) -> None:
    with pytest.raises(SystemPromptError, match="safe, none"):
        await prompts.set_preset(HERE, "wild", by_user_id=1)
    assert (await prompts.read(HERE)).own is None


async def test_the_guidance_counts_where_room_is_short(
    preferences: Preferences, prompts: SystemPrompts
) -> None:
    await preferences.set(HERE, "max_history_tokens", str(2 * META_TOKENS + 40), by_user_id=1)
    with pytest.raises(SystemPromptError, match="the operator's guidance included"):
        await prompts.set(HERE, "This is a long prompt.", by_user_id=1)
    with pytest.raises(ParameterError, match="too little room"):
        await preferences.set(HERE, "max_history_tokens", str(META_TOKENS), by_user_id=1)
    preferences.defaults = REPLACEABLE
    await prompts.set(HERE, "This is a long prompt.", by_user_id=1)
