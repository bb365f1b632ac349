"""Which settings there are, the default of each, and how its text is read. `.env.example` says what for.

An engine's stand in `engine/configuring`. The readers come first. Pure: each raises `ValueError` saying what
is allowed.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from bot.fleet.choice import read_shards
from bot.parameters import PARAMETERS, ChatParameters, GuidanceChoice, Parameter, read_limits
from engine.configuring.keys import Key, choice, engine_keys, host, number, path, text, whole
from storage.address import Location, PostgresAddress, without_password

_SERVER = re.compile(r"https?://[^\s/@?#,]+(/[^\s?#,]*)?")
_FIRST_SNOWFLAKE = 1 << 22
"""Anything smaller has a time stamp of 0: no Discord id."""


def ids(written: str) -> frozenset[int]:
    """Return the Discord ids in a list separated by commas."""
    parts = [part.strip() for part in written.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) <= 20 for part in parts):
        raise ValueError("must be Discord ids, which are numbers, separated by commas")
    return frozenset(map(int, parts))


def servers(written: str) -> tuple[str, ...]:
    """Return the addresses in a list separated by commas, each once and without a slash at its end."""
    found = [one.strip().rstrip("/") for one in written.split(",") if one.strip()]
    if not found or not all(_SERVER.fullmatch(one) for one in found):
        raise ValueError("must be addresses like http://10.0.0.5:8000, separated by commas")
    return tuple(dict.fromkeys(found))


def model_or_servers(written: str) -> Path | tuple[str, ...]:
    """Return the path of a model, or the addresses at which it answers."""
    return servers(written) if written.startswith(("http://", "https://")) else path(written)


def models(written: str) -> Path | dict[str, tuple[str, ...]]:
    """Return the path of a folder of models, or their names and addresses: `big=http://a:8000 small=…`."""
    if not re.search(r"=https?://", written):
        return path(written)
    entries = [entry.partition("=") for entry in written.split()]
    if not all(re.fullmatch(r"[^\s=,/]{1,80}", name) for name, _, _ in entries):
        raise ValueError(
            "must be a folder, or names with addresses, like big=http://10.0.0.5:8000 small=http://…"
        )
    return {name: servers(addresses) for name, _, addresses in entries}


def engine_key(written: str) -> str:
    """Return what servers know the bot by."""
    if not re.fullmatch(r"[\x21-\x7e]{1,200}", written):
        raise ValueError("must be one of the server's ENGINE_KEYS, without spaces")
    return written


def database(written: str) -> Location:
    """Return the path of a file, or the address of a PostgreSQL server."""
    return PostgresAddress.parse(written) if PostgresAddress.is_one(written) else path(written)


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


def _key_of(parameter: Parameter) -> Key:
    """Return the key of a parameter of answers."""
    if parameter.is_switch:
        return Key(parameter.name.upper(), "", lambda written: int(choice("on", "off")(written) == "on"))
    low, high = parameter.allowed.low, parameter.allowed.high
    parse = whole(int(low), int(high)) if parameter.is_whole else number(low, high)
    return Key(parameter.name.upper(), str(ChatParameters().value(parameter.name)), parse)


CHAT_KEYS = tuple(_key_of(parameter) for parameter in PARAMETERS.values() if parameter.name != "seed")

KEYS: tuple[Key, ...] = (
    Key("DISCORD_TOKEN", "", token, is_secret=True),
    *engine_keys("MODEL", "HF_TOKEN", "HF_ENDPOINT", "CHAT_TEMPLATE", "DRAFT_MODEL"),
    Key("MODELS", "", models),
    Key("ENGINE", "", servers),
    Key("ENGINE_KEY", "", engine_key, is_secret=True),
    Key("ENGINE_REPLICAS", "", servers),
    Key("OPERATOR_IDS", "", ids),
    *engine_keys("PRECISION", "PROVIDER", "LLAMA_CACHE"),
    Key("DATABASE", "data/llamacord.sqlite3", database, shown=without_password),
    Key("SHARDS", "", read_shards),
    *engine_keys("THREADS", "MAX_CONCURRENT", "CONTEXT_TOKENS", "KV_CACHE_MB", "KV_DISK_MB", "MAX_QUEUE"),
    Key("WORK_AHEAD", "auto", choice("auto", "on", "off")),
    Key("SUMMARIES", "auto", choice("auto", "on", "off")),
    Key("SYSTEM_PROMPT", "", text(4000)),
    Key("GUIDANCE", "auto", choice(*GuidanceChoice)),
    Key("GUIDANCE_JOIN", "on", choice("on", "off")),
    Key("MESSAGE_CONTENT_INTENT", "off", choice("on", "off")),
    *CHAT_KEYS,
    Key("LIMITS", "", read_limits),
    Key("MODERATION_MODEL", "", model_or_servers),
    Key("MODERATION_UNSURE", "refuse", choice("refuse", "allow")),
    Key("USER_PER_MINUTE", "10", whole(0, 1000)),
    Key("SERVER_PER_MINUTE", "120", whole(0, 10_000)),
    Key("RETENTION_DAYS", "0", whole(0, 3650)),
    Key("GRACE_DAYS", "30", whole(0, 3650)),
    Key("METRICS_PORT", "0", whole(0, 65535)),
    Key("METRICS_HOST", "127.0.0.1", host),
    *engine_keys("SHUTDOWN_GRACE", "LOG_LEVEL", "LOG_FORMAT"),
    Key("PLAYGROUND_PORT", "8323", whole(0, 65535)),
    *engine_keys("ENGINE_HOST", "ENGINE_PORT", "ENGINE_KEYS"),
)
"""Every setting there is, in the order of `.env.example`."""
