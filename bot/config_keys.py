"""Which settings there are, the default of each and how it is read. `.env.example` says what they are for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bot import parsers
from bot.parameters import PARAMETERS, ChatParameters, GuidanceChoice, Parameter, read_limits


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its name, its default as it would be written, and how it is read."""

    name: str
    default: str
    parse: Callable[[str], Any]
    is_secret: bool = False


def _key_of(parameter: Parameter) -> Key:
    """Return the key of a parameter of answers."""
    low, high = parameter.allowed.low, parameter.allowed.high
    parse = parsers.whole(int(low), int(high)) if parameter.is_whole else parsers.number(low, high)
    return Key(parameter.name.upper(), str(ChatParameters().value(parameter.name)), parse)


CHAT_KEYS = tuple(_key_of(parameter) for parameter in PARAMETERS.values() if parameter.name != "seed")

KEYS: tuple[Key, ...] = (
    Key("DISCORD_TOKEN", "", parsers.token, is_secret=True),
    Key("MODEL", "", parsers.path),
    Key("MODELS", "", parsers.path),
    Key("OPERATOR_IDS", "", parsers.ids),
    Key("PRECISION", "auto", parsers.choice("auto", "fp32", "fp16", "int8", "int4")),
    Key("PROVIDER", "auto", parsers.choice("auto", "cpu", "cuda")),
    Key("LLAMA_CACHE", "", parsers.path),
    Key("DATABASE", "data/llamacord.sqlite3", parsers.path),
    Key("THREADS", "0", parsers.whole(0, 256)),
    Key("MAX_CONCURRENT", "8", parsers.whole(1, 128)),
    Key("CONTEXT_TOKENS", "0", parsers.whole(256, 131072, or_zero=True)),
    Key("KV_CACHE_MB", "0", parsers.whole(64, 1_000_000, or_zero=True)),
    Key("MAX_QUEUE", "64", parsers.whole(1, 10_000)),
    Key("SYSTEM_PROMPT", "", parsers.text(4000)),
    Key("GUIDANCE", "auto", parsers.choice(*GuidanceChoice)),
    Key("GUIDANCE_JOIN", "on", parsers.choice("on", "off")),
    Key("MESSAGE_CONTENT_INTENT", "off", parsers.choice("on", "off")),
    *CHAT_KEYS,
    Key("LIMITS", "", read_limits),
    Key("MODERATION_MODEL", "", parsers.path),
    Key("MODERATION_UNSURE", "refuse", parsers.choice("refuse", "allow")),
    Key("USER_PER_MINUTE", "10", parsers.whole(0, 1000)),
    Key("SERVER_PER_MINUTE", "120", parsers.whole(0, 10_000)),
    Key("RETENTION_DAYS", "0", parsers.whole(0, 3650)),
    Key("GRACE_DAYS", "30", parsers.whole(0, 3650)),
    Key("METRICS_PORT", "0", parsers.whole(0, 65535)),
    Key("SHUTDOWN_GRACE", "20", parsers.whole(0, 600)),
    Key("LOG_LEVEL", "info", parsers.choice("debug", "info", "warning", "error")),
    Key("LOG_FORMAT", "text", parsers.choice("text", "json")),
    Key("PLAYGROUND_PORT", "8323", parsers.whole(0, 65535)),
)
"""Every setting there is, in the order of `.env.example`."""
