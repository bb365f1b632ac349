"""What holds for one conversation: its parameters and its system prompt, over the operator's defaults.

Owns their validation against the model. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from bot.conversation.parameters import (
    ANSWER_PRESETS,
    PARAMETERS,
    ChatParameters,
    Value,
    apply_overrides,
    describe,
    find_parameter,
)
from bot.conversation.prompting import check_question
from bot.errors import ParameterError, SystemPromptError
from bot.language.phrases import Phrase, phrase
from bot.servers.servers import Servers
from engine.guidance import PRESETS, preset_name
from engine.types import TextEngine
from storage.conversations import ConversationRef, Conversations
from storage.settings import SettingsStore

MAX_SYSTEM_PROMPT_CHARS = 1500
"""So that it can be shown in one Discord message."""
SYSTEM_PROMPT = "system_prompt"


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """What the model is told first in a conversation, and how that came about."""

    text: str
    """All of it."""
    own: str | None
    """What the conversation set for itself, None for the default; empty for the preset `none`."""
    is_guided: bool
    """Whether the operator's guidance comes before the conversation's own text."""

    @property
    def origin(self) -> Phrase:
        """Say in a few words where the text comes from."""
        if self.own is None:
            return phrase("system.origin_default")
        preset = preset_name(self.own)
        return phrase("system.origin_preset", name=preset) if preset else phrase("system.origin_own")


class Preferences:
    """Reads and changes what conversations set for themselves."""

    def __init__(
        self,
        engine: TextEngine,
        conversations: Conversations,
        settings: SettingsStore,
        defaults: ChatParameters,
        servers: Servers | None = None,
    ) -> None:
        self._engine = engine
        self._servers = servers
        self._conversations = conversations
        self._settings = settings
        self.defaults = defaults

    async def parameters(self, conversation_id: int) -> ChatParameters:
        """Return what holds for the conversation."""
        return apply_overrides(self.defaults, *await self._layers(conversation_id))

    def system_prompt_of(self, parameters: ChatParameters) -> str:
        """Return the whole system prompt in force.

        That is the conversation's, the operator's or the model's own text, after the operator's guidance.
        """
        return parameters.guidance.system_prompt(parameters.system_prompt, self._engine.info)

    async def describe(self, ref: ConversationRef) -> list[Phrase]:
        """Return a line for each parameter."""
        conversation_id = await self._conversations.open(ref)
        return describe(self.defaults, *await self._layers(conversation_id))

    async def set(self, ref: ConversationRef, name: str, text: str, *, by_user_id: int) -> tuple[str, Value]:
        """Set the parameter `name` to what `text` says. Raises `ParameterError`."""
        parameter = find_parameter(name).within(self.defaults.limits)
        value = parameter.parse(text)
        await self._set_all(ref, {parameter.name: value}, by_user_id)
        return parameter.name, value

    async def set_answer_preset(self, ref: ConversationRef, name: str, *, by_user_id: int) -> None:
        """Set the parameters that a preset names, as far as the operator allows. Raises `ParameterError`."""
        preset = ANSWER_PRESETS.get(name)
        if preset is None:
            raise ParameterError(phrase("settings.unknown_preset", names=", ".join(ANSWER_PRESETS)))
        values = {
            key: PARAMETERS[key].within(self.defaults.limits).nearest(value) for key, value in preset.items()
        }
        await self._set_all(ref, values, by_user_id)

    async def set_for_server(
        self, servers: Servers, guild_id: int, name: str, text: str | None, *, by_user_id: int
    ) -> str:
        """Set a server's default, or remove it with None; return its name. Raises `ParameterError`."""
        parameter = find_parameter(name).within(self.defaults.limits)
        kept = dict((await servers.config(guild_id)).answer_defaults)
        kept.pop(parameter.name, None)
        if text is not None:
            kept[parameter.name] = parameter.parse(text)
        changed = [f"{key}={PARAMETERS[key].format(value)}" for key, value in kept.items()]
        await servers.change(guild_id, {"answer_defaults": changed}, by_user_id=by_user_id)
        return parameter.name

    async def _set_all(self, ref: ConversationRef, values: Mapping[str, Value], by_user_id: int) -> None:
        conversation_id = await self._conversations.open(ref)
        changed = apply_overrides(self.defaults, *await self._layers(conversation_id), values)
        num_tokens = await self._count(self.system_prompt_of(changed))
        if num_tokens > self._max_system_tokens(changed):
            raise ParameterError(phrase("settings.no_room", num_tokens=num_tokens))
        for name, value in values.items():
            at = datetime.now(UTC)
            await self._settings.set(conversation_id, name, value, by_user_id=by_user_id, at=at)

    async def _layers(self, conversation_id: int) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """Return what the server and what the conversation set."""
        own = await self._settings.all(conversation_id)
        if self._servers is None:
            return {}, own
        config = await self._servers.config(await self._conversations.server_of(conversation_id))
        return dict(config.answer_defaults), own

    async def reset(self, ref: ConversationRef, name: str | None) -> int:
        """Set one parameter, or all of them, back to the default; return how many had been changed."""
        conversation_id = await self._conversations.open(ref)
        if name is not None:
            return await self._settings.clear(conversation_id, find_parameter(name).name)
        overrides = await self._settings.all(conversation_id)
        changed = [key for key in overrides if key != SYSTEM_PROMPT]
        return sum([await self._settings.clear(conversation_id, key) for key in changed])

    async def system_prompt(self, ref: ConversationRef) -> SystemPrompt:
        """Return the system prompt in force."""
        conversation_id = await self._conversations.open(ref)
        overrides = await self._settings.all(conversation_id)
        text = self.system_prompt_of(apply_overrides(self.defaults, overrides))
        own = overrides.get(SYSTEM_PROMPT)
        if not isinstance(own, str):
            return SystemPrompt(text, None, is_guided=False)
        return SystemPrompt(text, own, is_guided=text != own)

    async def system_prompt_cost(self, ref: ConversationRef) -> tuple[int, int]:
        """Return how many tokens the whole system prompt takes, and how many it may take."""
        parameters = await self.parameters(await self._conversations.open(ref))
        return await self._count(self.system_prompt_of(parameters)), self._max_system_tokens(parameters)

    async def set_system_prompt(self, ref: ConversationRef, text: str, *, by_user_id: int) -> int:
        """Set the conversation's text; return the tokens of the whole system prompt.

        Raises `SystemPromptError` or `UnsafePromptError`.
        """
        prompt = text.strip()
        if not prompt:
            raise SystemPromptError(phrase("system.empty"))
        if len(prompt) > MAX_SYSTEM_PROMPT_CHARS:
            raise SystemPromptError(
                phrase(
                    "system.too_many_characters",
                    num_characters=len(prompt),
                    allowed=MAX_SYSTEM_PROMPT_CHARS,
                )
            )
        return await self._set_system_prompt(ref, prompt, by_user_id)

    async def set_preset(self, ref: ConversationRef, name: str, *, by_user_id: int) -> int:
        """Set the conversation's text to a named one; return the tokens of the whole system prompt.

        Raises `SystemPromptError` for an unknown name or a preset that takes too much of the context.
        """
        preset = PRESETS.get(name.strip().lower())
        if preset is None:
            raise SystemPromptError(phrase("system.unknown_preset", names=", ".join(PRESETS)))
        return await self._set_system_prompt(ref, preset, by_user_id)

    async def clear_system_prompt(self, ref: ConversationRef) -> bool:
        """Go back to the default; return whether there was another one."""
        conversation_id = await self._conversations.open(ref)
        return await self._settings.clear(conversation_id, SYSTEM_PROMPT) > 0

    async def _set_system_prompt(self, ref: ConversationRef, own: str, by_user_id: int) -> int:
        conversation_id = await self._conversations.open(ref)
        changed = dataclasses.replace(await self.parameters(conversation_id), system_prompt=own)
        whole = self.system_prompt_of(changed)
        num_tokens, allowed = await self._count(whole), self._max_system_tokens(changed)
        if num_tokens > allowed:
            key = "system.too_many_tokens" if whole == own else "system.too_many_tokens_guided"
            raise SystemPromptError(phrase(key, num_tokens=num_tokens, allowed=allowed))
        await asyncio.to_thread(check_question, self._engine, "?", whole, self._engine.info.context_length)
        await self._settings.set(
            conversation_id, SYSTEM_PROMPT, own, by_user_id=by_user_id, at=datetime.now(UTC)
        )
        return num_tokens

    def _max_system_tokens(self, parameters: ChatParameters) -> int:
        """Half of the prompt: the rest is for what people say."""
        return parameters.prompt_budget(self._engine.info.context_length) // 2

    async def _count(self, text: str) -> int:
        return await asyncio.to_thread(self._engine.count_tokens, text)
