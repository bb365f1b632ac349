"""The system prompt of a conversation under the operator's guidance: shown, set, bounded, kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from bot.conversation.preferences import Preferences
from bot.conversation.system_prompts import SystemPrompt, SystemPrompts
from bot.errors import ParameterError, SystemPromptError
from bot.parameters import ANSWER_PRESETS, ChatParameters, Guidance, GuidanceChoice
from engine.types import META_SYSTEM_PROMPT
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


async def test_a_models_own_values_follow_the_model(preferences: Preferences) -> None:
    assert (await preferences.parameters(1)).sampling.temperature == 0.7
    engine = preferences._engine
    assert isinstance(engine, ScriptedEngine)
    engine.info = replace(engine.info, sampling={"temperature": 0.2, "top_k": 20})
    assert (await preferences.parameters(1)).sampling.temperature == 0.2
    said = await preferences.describe(HERE)
    assert "**temperature** = `0.2` (the model's own, 0 to 2)" in said[0]
    await preferences.set(HERE, "temperature", "0.5", by_user_id=1)
    assert "(set here; otherwise 0.2," in (await preferences.describe(HERE))[0]
    preferences.defaults = replace(SAFE, chosen=frozenset({"top_k"}))
    assert preferences.defaults.sampling.top_k == 40


async def test_thinking_can_be_chosen_where_the_model_leaves_the_choice(preferences: Preferences) -> None:
    engine = preferences._engine
    assert isinstance(engine, ScriptedEngine)
    with pytest.raises(ParameterError, match="this model leaves no choice"):
        await preferences.set(HERE, "thinking", "off", by_user_id=1)
    engine.info = replace(engine.info, thinks=True)
    assert (await preferences.parameters(1)).thinks is True
    assert "**thinking** = `on` (the model's own" in (await preferences.describe(HERE))[-1]
    assert await preferences.set(HERE, "thinking", "off", by_user_id=1) == ("thinking", 0)
    assert (await preferences.parameters(1)).thinks is False
    engine.info = replace(engine.info, thinks=None)
    assert "thinking" not in "".join(await preferences.describe(HERE)), "another model is loaded"


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
    with pytest.raises(SystemPromptError, match="including the safety guidance"):
        await prompts.set(HERE, "This is a long prompt.", by_user_id=1)
    with pytest.raises(ParameterError, match="too little room"):
        await preferences.set(HERE, "max_history_tokens", str(META_TOKENS), by_user_id=1)
    preferences.defaults = REPLACEABLE
    await prompts.set(HERE, "This is a long prompt.", by_user_id=1)


@pytest.mark.parametrize("act", ["preset", "reset"])
async def test_nobody_reads_half_of_a_preset_or_of_a_reset(preferences: Preferences, act: str) -> None:
    preset = ANSWER_PRESETS["creative"]
    conversation_id = await preferences._conversations.open(HERE)
    choosing = preferences.set_answer_preset(HERE, "creative", by_user_id=1)
    if act == "reset":
        await choosing
    change = asyncio.ensure_future(choosing if act == "preset" else preferences.reset(HERE, None))
    read = []
    while not change.done():
        parameters = await preferences.parameters(conversation_id)
        read.append({name: parameters.value(name) for name in preset})
    await change
    parameters = await preferences.parameters(conversation_id)
    read.append({name: parameters.value(name) for name in preset})
    before = {name: SAFE.value(name) for name in preset}
    whole = [before, preset] if act == "preset" else [preset, before]
    assert read[-1] == whole[1]
    assert all(values in whole for values in read)


async def test_a_preset_that_cannot_be_stored_whole_is_not_stored_at_all(preferences: Preferences) -> None:
    await preferences.set(HERE, "top_k", "7", by_user_id=1)
    with pytest.raises(ValueError, match="JSON"):
        await preferences._set_all(HERE, {"temperature": 0.1, "top_p": float("nan")}, 1)
    assert await preferences.reset(HERE, None) == 1


async def test_a_reset_leaves_the_system_prompt(preferences: Preferences, prompts: SystemPrompts) -> None:
    await prompts.set(HERE, "Rhyme.", by_user_id=1)
    await preferences.set_answer_preset(HERE, "precise", by_user_id=1)
    assert await preferences.reset(HERE, "top_k") == 1
    assert await preferences.reset(HERE, None) == 3
    assert await preferences.reset(HERE, None) == 0
    assert (await prompts.read(HERE)).own == "Rhyme."
