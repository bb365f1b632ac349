"""Which settings there are: the name of each, its default, how it is read, and what it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bot import parsers
from bot.parameters import HISTORY_RANGE, ChatParameters, GuidanceChoice, read_limits
from engine.types import RANGES


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
        return Key(name.upper(), str(default), parsers.whole(int(allowed.low), int(allowed.high)), meaning)
    return Key(name.upper(), str(default), parsers.number(allowed.low, allowed.high), meaning)


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
    Key("DISCORD_TOKEN", "", parsers.token, "The bot's token. Empty: the playground, in the browser.", True),
    Key(
        "MODEL",
        "",
        parsers.path,
        "Folder of a model: converted, or a Llama-2-Onnx release. Empty: the default.",
    ),
    Key("MODELS", "", parsers.path, "Folder of models that operators may switch between with /model."),
    Key("OPERATOR_IDS", "", parsers.ids, "Discord ids of those who run the bot, separated by commas."),
    Key(
        "PRECISION",
        "auto",
        parsers.choice("auto", "fp32", "fp16", "int8", "int4"),
        "Weights of the default model.",
    ),
    Key("PROVIDER", "auto", parsers.choice("auto", "cpu", "cuda"), "What computes. auto: the best there is."),
    Key("LLAMA_CACHE", "", parsers.path, "Folder for models. Empty: llamacord in the user's cache folder."),
    Key("DATABASE", "data/llamacord.sqlite3", parsers.path, "File for conversations and their settings."),
    Key("THREADS", "0", parsers.whole(0, 256), "CPU threads for the model. 0: as many as there are cores."),
    Key("MAX_CONCURRENT", "8", parsers.whole(1, 128), "How many answers are generated at once."),
    Key(
        "CONTEXT_TOKENS",
        "0",
        parsers.whole(256, 131072, or_zero=True),
        "Tokens of question, history and answer together. 0: what the model can, at most 4096.",
    ),
    Key(
        "KV_CACHE_MB",
        "0",
        parsers.whole(64, 1_000_000, or_zero=True),
        "Memory for what the model keeps of conversations, in MiB. 0: what is useful and free.",
    ),
    Key("MAX_QUEUE", "64", parsers.whole(1, 10_000), "How many answers may wait; more are refused."),
    Key("SYSTEM_PROMPT", "", parsers.text(4000), "What the model is told first. Empty: the model's own."),
    Key(
        "GUIDANCE",
        "auto",
        parsers.choice(*GuidanceChoice),
        "Safety guidance before any system prompt. auto: Meta's (safe) for Llama 2, none for other models.",
    ),
    Key(
        "GUIDANCE_JOIN",
        "on",
        parsers.choice("on", "off"),
        "on: SYSTEM_PROMPT and /system follow the guidance. off: they take its place.",
    ),
    Key(
        "MESSAGE_CONTENT_INTENT",
        "off",
        parsers.choice("on", "off"),
        "on: moderators may let me answer without a mention. Also switch it on in the developer portal.",
    ),
    *CHAT_KEYS,
    Key(
        "LIMITS",
        "",
        read_limits,
        "What servers and conversations may set, as temperature=0..1, max_new_tokens=1..800.",
    ),
    Key("MODERATION_MODEL", "", parsers.path, "Folder of a converted Llama Guard. Empty: none."),
    Key("MODERATION_UNSURE", "refuse", parsers.choice("refuse", "allow"), "What it could not judge."),
    Key(
        "USER_PER_MINUTE", "10", parsers.whole(0, 1000), "Questions a person may ask a minute. 0: any number."
    ),
    Key("SERVER_PER_MINUTE", "120", parsers.whole(0, 10_000), "Questions a server may ask a minute."),
    Key(
        "RETENTION_DAYS",
        "0",
        parsers.whole(0, 3650),
        "Days after which messages are deleted. 0: not by age.",
    ),
    Key(
        "GRACE_DAYS",
        "30",
        parsers.whole(0, 3650),
        "Days after which everything of a server that removed the bot, or of a deleted channel, is deleted.",
    ),
    Key(
        "METRICS_PORT",
        "0",
        parsers.whole(0, 65535),
        "Port on this machine for /metrics (Prometheus) and /healthz. 0: none.",
    ),
    Key(
        "SHUTDOWN_GRACE",
        "20",
        parsers.whole(0, 600),
        "Seconds that answers in the making get to end when the bot is stopped; then they are marked.",
    ),
    Key("LOG_LEVEL", "info", parsers.choice("debug", "info", "warning", "error"), "How much is logged."),
    Key(
        "LOG_FORMAT", "text", parsers.choice("text", "json"), "How: a line to read, or a JSON object a line."
    ),
    Key("PLAYGROUND_PORT", "8323", parsers.whole(0, 65535), "Port of the playground. 0: any free one."),
)
"""Every setting there is, in the order of `.env.example`."""
