"""Which settings there are: the name of each, its default, how its text is read, and what it is for.

The readers come first. Pure: each raises `ValueError` saying what is allowed.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.parameters import HISTORY_RANGE, ChatParameters, GuidanceChoice, read_limits
from engine.types import RANGES

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

    def parse(written: str) -> int:
        try:
            value = int(written)
        except ValueError:
            raise ValueError(rule) from None
        if not low <= value <= high and not (or_zero and value == 0):
            raise ValueError(rule)
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """Return a reader of a number in a range, both ends included."""
    rule = f"must be a number from {low:g} to {high:g}"

    def parse(written: str) -> float:
        try:
            value = float(written)
        except ValueError:
            raise ValueError(rule) from None
        if not math.isfinite(value) or not low <= value <= high:
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
    """One setting: its name, its default as it would be written, how it is read, and what it is for."""

    name: str
    default: str
    parse: Callable[[str], Any]
    meaning: str
    is_secret: bool = False


def _parameter(name: str, meaning: str) -> Key:
    """Return the key of a field of `ChatParameters`, with its default and its range."""
    allowed = RANGES.get(name, HISTORY_RANGE)
    default = getattr(ChatParameters(), name)
    if isinstance(default, int):
        return Key(name.upper(), str(default), whole(int(allowed.low), int(allowed.high)), meaning)
    return Key(name.upper(), str(default), number(allowed.low, allowed.high), meaning)


CHAT_KEYS = (
    _parameter("temperature", "How adventurous answers are. 0 always takes the likeliest token."),
    _parameter("top_p", "Share of probability to choose from. 1 is all."),
    _parameter("top_k", "How many tokens to choose from. 0 is all."),
    _parameter("min_p", "Least probability, as a share of the likeliest token's. 0 is off."),
    _parameter("repetition_penalty", "Above 1 repeats less."),
    _parameter("max_new_tokens", "Longest answer, in tokens."),
    _parameter("max_history_tokens", "How much of the conversation the model is shown, in tokens."),
)
KEYS: tuple[Key, ...] = (
    Key("DISCORD_TOKEN", "", token, "The bot's token. Empty: the playground, in the browser.", True),
    Key(
        "MODEL",
        "",
        path,
        "Folder of a model: converted, or a Llama-2-Onnx release. Empty: the default.",
    ),
    Key("MODELS", "", path, "Folder of models that operators may switch between with /model."),
    Key("OPERATOR_IDS", "", ids, "Discord ids of those who run the bot, separated by commas."),
    Key(
        "PRECISION",
        "auto",
        choice("auto", "fp32", "fp16", "int8", "int4"),
        "Weights of the default model.",
    ),
    Key("PROVIDER", "auto", choice("auto", "cpu", "cuda"), "What computes. auto: the best there is."),
    Key("LLAMA_CACHE", "", path, "Folder for models. Empty: llamacord in the user's cache folder."),
    Key("DATABASE", "data/llamacord.sqlite3", path, "File for conversations and their settings."),
    Key("THREADS", "0", whole(0, 256), "CPU threads for the model. 0: as many as there are cores."),
    Key("MAX_CONCURRENT", "8", whole(1, 128), "How many answers are generated at once."),
    Key(
        "CONTEXT_TOKENS",
        "0",
        whole(256, 131072, or_zero=True),
        "Tokens of question, history and answer together. 0: what the model can, at most 4096.",
    ),
    Key(
        "KV_CACHE_MB",
        "0",
        whole(64, 1_000_000, or_zero=True),
        "Memory for what the model keeps of conversations, in MiB. 0: what is useful and free.",
    ),
    Key("MAX_QUEUE", "64", whole(1, 10_000), "How many answers may wait; more are refused."),
    Key("SYSTEM_PROMPT", "", text(4000), "What the model is told first. Empty: the model's own."),
    Key(
        "GUIDANCE",
        "auto",
        choice(*GuidanceChoice),
        "Safety guidance before any system prompt. auto: Meta's (safe) for Llama 2, none for other models.",
    ),
    Key(
        "GUIDANCE_JOIN",
        "on",
        choice("on", "off"),
        "on: SYSTEM_PROMPT and /system follow the guidance. off: they take its place.",
    ),
    Key(
        "MESSAGE_CONTENT_INTENT",
        "off",
        choice("on", "off"),
        "on: moderators may let me answer without a mention. Also switch it on in the developer portal.",
    ),
    *CHAT_KEYS,
    Key(
        "LIMITS",
        "",
        read_limits,
        "What servers and conversations may set, as temperature=0..1, max_new_tokens=1..800.",
    ),
    Key("MODERATION_MODEL", "", path, "Folder of a converted Llama Guard. Empty: none."),
    Key("MODERATION_UNSURE", "refuse", choice("refuse", "allow"), "What it could not judge."),
    Key("USER_PER_MINUTE", "10", whole(0, 1000), "Questions a person may ask a minute. 0: any number."),
    Key("SERVER_PER_MINUTE", "120", whole(0, 10_000), "Questions a server may ask a minute."),
    Key(
        "RETENTION_DAYS",
        "0",
        whole(0, 3650),
        "Days after which messages are deleted. 0: not by age.",
    ),
    Key(
        "GRACE_DAYS",
        "30",
        whole(0, 3650),
        "Days after which everything of a server that removed the bot, or of a deleted channel, is deleted.",
    ),
    Key(
        "METRICS_PORT",
        "0",
        whole(0, 65535),
        "Port on this machine for /metrics (Prometheus) and /healthz. 0: none.",
    ),
    Key(
        "SHUTDOWN_GRACE",
        "20",
        whole(0, 600),
        "Seconds that answers in the making get to end when the bot is stopped; then they are marked.",
    ),
    Key("LOG_LEVEL", "info", choice("debug", "info", "warning", "error"), "How much is logged."),
    Key("LOG_FORMAT", "text", choice("text", "json"), "How: a line to read, or a JSON object a line."),
    Key("PLAYGROUND_PORT", "8323", whole(0, 65535), "Port of the playground. 0: any free one."),
)
"""Every setting there is, in the order of `.env.example`."""
