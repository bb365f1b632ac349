"""What holds for one conversation: its parameters and system prompt, over its server's and the operator's.

Owns their validation against the model, and what a system prompt may leave open: the date, the time, and the
names of where something is said. Names come from people, so they are put in as labels: none can open a
control tag. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from bot.conversation.mentions import label
from bot.errors import ParameterError
from bot.language.phrases import Phrase, phrase
from bot.parameters import (
    ANSWER_PRESETS,
    PARAMETERS,
    THINKING,
    ChatParameters,
    Parameter,
    Value,
    apply_overrides,
    describe,
    find_parameter,
    written_parameters,
)
from bot.servers.server_config import ServerConfig
from bot.servers.servers import Servers
from engine.types import TextEngine
from storage.conversations import ConversationRef, Conversations
from storage.settings import SettingsStore
from storage.summaries import Summary

SYSTEM_PROMPT = "system_prompt"
MINUTES = 15
"""Steps of the time: each new one makes a prompt whose KV is not there yet."""
_MAX_NAME = 100
"""As long as Discord lets a channel's name be."""
_OPEN = re.compile(r"\{(date|time|weekday|server|channel|bot)\}")
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class Preferences:
    """Reads and changes what conversations set for themselves."""

    def __init__(
        self,
        engine: TextEngine,
        conversations: Conversations,
        settings: SettingsStore,
        defaults: ChatParameters,
        servers: Servers | None = None,
        sums_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """`sums_up`: whether what is let go of histories is summed up at all."""
        self._engine = engine
        self._may_sum_up = sums_up
        self._servers = servers
        self._conversations = conversations
        self._settings = settings
        self._of_operator = defaults
        self.surroundings: Surround = lambda _guild_id, _channel_id: Surroundings()
        """Knows the names of places; whoever shows answers sets it."""

    @property
    def defaults(self) -> ChatParameters:
        """What holds where nobody else set anything: the operator's choice, or the model's own."""
        info = self._engine.info
        if info.thinks is None:  # nobody can choose
            return dataclasses.replace(self._of_operator, thinking=None).with_advice(info.sampling)
        return self._of_operator.with_advice({**info.sampling, THINKING: int(info.thinks)})

    @defaults.setter
    def defaults(self, of_operator: ChatParameters) -> None:
        self._of_operator = of_operator

    async def parameters(self, conversation_id: int) -> ChatParameters:
        """Return what holds for the conversation."""
        return apply_overrides(self.defaults, *await self._layers(conversation_id))

    def system_prompt_of(self, parameters: ChatParameters, surroundings: Surroundings | None = None) -> str:
        """Return the whole system prompt in force, filled in where `surroundings` say how.

        That is the conversation's, the operator's or the model's own text, after the operator's guidance.
        """
        text = parameters.guidance.system_prompt(parameters.system_prompt, self._engine.info)
        return text if surroundings is None else filled(text, surroundings, datetime.now().astimezone())

    async def told_in(self, conversation_id: int, parameters: ChatParameters) -> str:
        """Return the whole system prompt as it is told in a conversation now."""
        ref = await self._conversations.ref_of(conversation_id)
        return self.system_prompt_of(parameters, self.surroundings(ref.guild_id, ref.channel_id))

    async def sums_up(self, conversation_id: int) -> bool:
        """Tell whether what is let go of a conversation is summed up, and the model told of it."""
        if self._servers is None or not self._may_sum_up():
            return self._may_sum_up()
        return (await self._servers.config(await self._conversations.server_of(conversation_id))).sums_up

    async def summaries(self, conversation_id: int) -> list[Summary]:
        """Return what the model is told of what was let go, oldest first."""
        is_told = await self.sums_up(conversation_id)
        return await self._conversations.summaries.of(conversation_id) if is_told else []

    async def describe(self, ref: ConversationRef) -> list[Phrase]:
        """Return a line for each parameter."""
        conversation_id = await self._conversations.open(ref)
        return describe(self.defaults, *await self._layers(conversation_id))

    async def set(self, ref: ConversationRef, name: str, text: str, *, by_user_id: int) -> tuple[str, Value]:
        """Set the parameter `name` to what `text` says. Raises `ParameterError`."""
        parameter = self._settable(name)
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

    async def server_parameters(self, guild_id: int) -> ChatParameters:
        """Return what holds in the conversations of a server that set nothing themselves."""
        layer = {} if self._servers is None else layer_of(await self._servers.config(guild_id))
        return apply_overrides(self.defaults, layer)

    async def set_for_server(
        self, servers: Servers, guild_id: int, name: str, text: str | None, *, by_user_id: int
    ) -> str:
        """Set a server's default, or remove it with None; return its name. Raises `ParameterError`."""
        name = find_parameter(name).name if text is None else self._settable(name).name
        limits = self.defaults.limits
        values = (await servers.config(guild_id)).answer_defaults
        kept = written_parameters(one for one in values if PARAMETERS[one[0]].within(limits).accepts(one[1]))
        kept.pop(name, None)
        if text is not None:
            kept[name] = text
        await self.set_all_for_server(servers, guild_id, kept, by_user_id=by_user_id)
        return name

    async def set_all_for_server(
        self, servers: Servers, guild_id: int, written: Mapping[str, str], *, by_user_id: int
    ) -> ServerConfig:
        """Set all of a server's defaults, by name; return its settings. Raises `ParameterError`."""
        values: dict[str, Value] = {}
        for name, text in written.items():
            parameter = find_parameter(name).within(self.defaults.limits)
            values[parameter.name] = parameter.parse(text)
        layer = layer_of(await servers.config(guild_id))
        prompt = {key: layer[key] for key in layer.keys() & {SYSTEM_PROMPT}}
        await self._check_room(apply_overrides(self.defaults, values, prompt))
        changed = [f"{name}={text}" for name, text in written_parameters(values.items()).items()]
        return await servers.change(guild_id, {"answer_defaults": changed}, by_user_id=by_user_id)

    def _settable(self, name: str) -> Parameter:
        """Return a parameter as far as it may be set here. Raises `ParameterError`."""
        parameter, defaults = find_parameter(name), self.defaults
        if parameter.is_switch and defaults.thinking is None:
            raise ParameterError(phrase("settings.no_switch", name=parameter.name))
        return parameter.within(defaults.limits)

    async def _set_all(self, ref: ConversationRef, values: Mapping[str, Value], by_user_id: int) -> None:
        conversation_id = await self._conversations.open(ref)
        changed = apply_overrides(self.defaults, *await self._layers(conversation_id), values)
        await self._check_room(changed)
        at = datetime.now(UTC)
        await self._settings.set_all(conversation_id, values, by_user_id=by_user_id, at=at)

    async def _layers(self, conversation_id: int) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """Return what the server and what the conversation set."""
        own = await self._settings.all(conversation_id)
        if self._servers is None:
            return {}, own
        config = await self._servers.config(await self._conversations.server_of(conversation_id))
        return layer_of(config), own

    async def begin_like(self, ref: ConversationRef, other: ConversationRef) -> None:
        """Let a new conversation begin with the settings of another."""
        from_id = await self._conversations.find(other)
        if from_id is not None:
            await self._settings.copy(from_id, await self._conversations.open(ref))

    async def reset(self, ref: ConversationRef, name: str | None) -> int:
        """Set one parameter, or all of them, back to the default; return how many had been changed."""
        key = None if name is None else find_parameter(name).name
        return await self._settings.clear(await self._conversations.open(ref), key, keep=SYSTEM_PROMPT)

    def max_system_tokens(self, parameters: ChatParameters) -> int:
        """Return how many tokens a system prompt may take: half of the prompt, the rest is for people."""
        return parameters.prompt_budget(self._engine.info.context_length) // 2

    async def _check_room(self, parameters: ChatParameters) -> None:
        """Raise `ParameterError` where the system prompt would leave too little room."""
        text = self.system_prompt_of(parameters)
        num_tokens = await asyncio.to_thread(self._engine.count_tokens, text)
        if num_tokens > self.max_system_tokens(parameters):
            raise ParameterError(phrase("settings.no_room", num_tokens=num_tokens))


def layer_of(config: ServerConfig) -> dict[str, object]:
    """Return what a server sets for the answers in all its conversations."""
    layer: dict[str, object] = dict(config.answer_defaults)
    return layer if config.system_prompt is None else {**layer, SYSTEM_PROMPT: config.system_prompt}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The names of a place. An empty one is of no server, as in a direct message; None is not known."""

    bot: str | None = None
    server: str | None = ""
    channel: str | None = ""


Surround = Callable[[int | None, int | None], Surroundings]
"""Returns the names for a server and a channel, by their ids."""


def filled(prompt: str, surroundings: Surroundings, now: datetime) -> str:
    """Return a system prompt with its placeholders filled in; all else in braces stays as it was written."""
    values = {
        "date": f"{now:%Y-%m-%d}",
        "time": f"{now.replace(minute=now.minute - now.minute % MINUTES):%H:%M %Z}".rstrip(),
        "weekday": _WEEKDAYS[now.weekday()],
        "server": _name(surroundings.server),
        "channel": _name(surroundings.channel),
        "bot": _name(surroundings.bot),
    }
    return _OPEN.sub(lambda found: values[found[1]] or found[0], prompt)


def _name(name: str | None) -> str | None:
    if name is None:
        return None
    return label(name, _MAX_NAME) if name else "direct messages"
