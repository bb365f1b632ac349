"""Which settings there are, the default of each, and how its text is read. `.env.example` says what for.

The readers come first. Pure: each raises `ValueError` saying what is allowed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bot.parameters import PARAMETERS, ChatParameters, GuidanceChoice, Parameter, read_limits
from engine.hub.address import HubAddress

Number = TypeVar("Number", int, float)
_FIRST_SNOWFLAKE = 1 << 22
"""Anything smaller has a time stamp of 0: no Discord id."""


def choice(*allowed: str) -> Callable[[str], str]:
    """Return a reader of one of a few words, in any case."""

    def parse(written: str) -> str:
        if written.lower() not in allowed:
            raise ValueError(f"must be {', '.join(allowed[:-1])} or {allowed[-1]}")
        return written.lower()

    return parse


def whole(low: int, high: int, *, or_zero: bool = False) -> Callable[[str], int]:
    """Return a reader of a whole number in a range, both ends included, or 0 where that has a meaning."""
    rule = f"must be {'0 or ' if or_zero else ''}a whole number from {low} to {high}"
    return _between(int, low, high, rule, or_zero=or_zero)


def number(low: float, high: float) -> Callable[[str], float]:
    """Return a reader of a number in a range, both ends included."""
    return _between(float, low, high, f"must be a number from {low:g} to {high:g}")


def _between(
    read: Callable[[str], Number], low: float, high: float, rule: str, *, or_zero: bool = False
) -> Callable[[str], Number]:
    def parse(written: str) -> Number:
        try:
            value = read(written)
        except ValueError:
            raise ValueError(rule) from None
        if not low <= value <= high and not (or_zero and value == 0):
            raise ValueError(rule)
        return value

    return parse


def ids(written: str) -> frozenset[int]:
    """Return the Discord ids in a list separated by commas."""
    parts = [part.strip() for part in written.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) <= 20 for part in parts):
        raise ValueError("must be Discord ids, which are numbers, separated by commas")
    return frozenset(map(int, parts))


def text(max_length: int) -> Callable[[str], str]:
    """Return a reader of any text up to a length in characters."""

    def parse(written: str) -> str:
        if len(written) > max_length:
            raise ValueError(f"must have at most {max_length} characters, not {len(written)}")
        return written

    return parse


def path(written: str) -> Path:
    """Return the path, with a leading `~` replaced by the home folder."""
    if "\0" in written:
        raise ValueError("must be a path without a null character")
    try:
        return Path(written).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~, but the home folder is not known: write the whole path") from None


def model(written: str) -> Path | HubAddress:
    """Return the path, or the address of a model at Hugging Face."""
    return HubAddress.parse(written) if HubAddress.is_one(written) else path(written)


def address(written: str) -> str:
    """Return the address of a web server without a slash at its end."""
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", written):
        raise ValueError("must begin with https:// or http://")
    return written.rstrip("/")


def hub_token(written: str) -> str:
    """Return a token of Hugging Face after a look at its shape."""
    if not re.fullmatch(r"[\x21-\x7e]{1,200}", written):
        raise ValueError("must be a token without spaces, as huggingface.co/settings/tokens shows it")
    return written


def token(written: str) -> str:
    """Return a Discord token after a look at its shape."""
    if bot_id(written) is None:
        raise ValueError(
            "does not look like a bot token, which has three parts with dots between them: copy it from "
            "the Bot page of your application on discord.com/developers, not from OAuth2 or General"
        )
    return written


def bot_id(written: str) -> int | None:
    """Return the bot's id, which a token's first part holds in base64, or None where it holds none."""
    parts = written.split(".")
    if len(parts) != 3 or not all(_is_base64url(part) for part in parts):
        return None
    try:
        decoded = base64.urlsafe_b64decode(parts[0] + "=" * (-len(parts[0]) % 4)).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return None
    if not decoded.isdecimal() or not _FIRST_SNOWFLAKE <= int(decoded) < 1 << 64:
        return None
    return int(decoded)


def _is_base64url(part: str) -> bool:
    return bool(part) and part.isascii() and part.replace("-", "a").replace("_", "a").isalnum()


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
    parse = whole(int(low), int(high)) if parameter.is_whole else number(low, high)
    return Key(parameter.name.upper(), str(ChatParameters().value(parameter.name)), parse)


CHAT_KEYS = tuple(_key_of(parameter) for parameter in PARAMETERS.values() if parameter.name != "seed")

KEYS: tuple[Key, ...] = (
    Key("DISCORD_TOKEN", "", token, is_secret=True),
    Key("MODEL", "", model),
    Key("HF_TOKEN", "", hub_token, is_secret=True),
    Key("HF_ENDPOINT", "", address),
    Key("CHAT_TEMPLATE", "", path),
    Key("DRAFT_MODEL", "", path),
    Key("MODELS", "", path),
    Key("OPERATOR_IDS", "", ids),
    Key("PRECISION", "auto", choice("auto", "fp32", "fp16", "int8", "int4")),
    Key("PROVIDER", "auto", choice("auto", "cpu", "cuda")),
    Key("LLAMA_CACHE", "", path),
    Key("DATABASE", "data/llamacord.sqlite3", path),
    Key("THREADS", "0", whole(0, 256)),
    Key("MAX_CONCURRENT", "8", whole(1, 128)),
    Key("CONTEXT_TOKENS", "0", whole(256, 131072, or_zero=True)),
    Key("KV_CACHE_MB", "0", whole(64, 1_000_000, or_zero=True)),
    Key("KV_DISK_MB", "0", whole(64, 10_000_000, or_zero=True)),
    Key("MAX_QUEUE", "64", whole(1, 10_000)),
    Key("WORK_AHEAD", "auto", choice("auto", "on", "off")),
    Key("SUMMARIES", "auto", choice("auto", "on", "off")),
    Key("SYSTEM_PROMPT", "", text(4000)),
    Key("GUIDANCE", "auto", choice(*GuidanceChoice)),
    Key("GUIDANCE_JOIN", "on", choice("on", "off")),
    Key("MESSAGE_CONTENT_INTENT", "off", choice("on", "off")),
    *CHAT_KEYS,
    Key("LIMITS", "", read_limits),
    Key("MODERATION_MODEL", "", path),
    Key("MODERATION_UNSURE", "refuse", choice("refuse", "allow")),
    Key("USER_PER_MINUTE", "10", whole(0, 1000)),
    Key("SERVER_PER_MINUTE", "120", whole(0, 10_000)),
    Key("RETENTION_DAYS", "0", whole(0, 3650)),
    Key("GRACE_DAYS", "30", whole(0, 3650)),
    Key("METRICS_PORT", "0", whole(0, 65535)),
    Key("SHUTDOWN_GRACE", "20", whole(0, 600)),
    Key("LOG_LEVEL", "info", choice("debug", "info", "warning", "error")),
    Key("LOG_FORMAT", "text", choice("text", "json")),
    Key("PLAYGROUND_PORT", "8323", whole(0, 65535)),
)
"""Every setting there is, in the order of `.env.example`."""
