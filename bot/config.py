"""The settings: what may be set, what it may be, and where it came from.

Reads a `.env` file and the environment, which wins, into one frozen `Settings`. Reports every bad value at
once. Knows nothing of Discord, models or databases: a path is only a path here.
"""

from __future__ import annotations

import difflib
import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from dotenv.parser import parse_stream

from bot import parsers
from bot.conversation.guidance import Guidance, GuidanceChoice
from bot.conversation.parameters import HISTORY_RANGE, ChatParameters, read_limits
from bot.limits.rates import Allowance
from bot.privacy.keeping import Keeping
from engine.types import RANGES

_MAX_SHOWN_CHARACTERS = 60
"""Of a bad value."""


class ConfigError(Exception):
    """Some settings are wrong. The message names all of them, with key, value and what is allowed."""


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


_CHAT_KEYS = (
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
    Key("PROVIDER", "auto", parsers.choice("auto", "cpu"), "What computes. auto: the best there is."),
    Key("LLAMA_CACHE", "", parsers.path, "Folder for models. Empty: llamacord in the user's cache folder."),
    Key("DATABASE", "data/llamacord.sqlite3", parsers.path, "File for conversations and their settings."),
    Key("THREADS", "0", parsers.whole(0, 256), "CPU threads for the model. 0: as many as there are cores."),
    Key("MAX_CONCURRENT", "8", parsers.whole(1, 64), "How many answers are generated at once."),
    Key(
        "CONTEXT_TOKENS",
        "0",
        parsers.whole(256, 131072, or_zero=True),
        "Tokens of question, history and answer together. 0: what the model can, at most 4096.",
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
    *_CHAT_KEYS,
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


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator chose. `KEYS` says what 0 means."""

    discord_token: str | None = field(repr=False)
    model: Path | None
    precision: str
    provider: str
    cache: Path
    database: Path
    threads: int
    max_concurrent: int
    context_tokens: int
    max_queue: int
    sees_all_messages: bool
    models: Path | None
    operator_ids: frozenset[int]
    chat: ChatParameters
    moderation_model: Path | None
    moderation_refuses_unchecked: bool
    allowance: Allowance
    keeping: Keeping
    metrics_port: int
    shutdown_grace_s: int
    log_level: int
    playground_port: int
    logs_json: bool
    values: Mapping[str, Any] = field(repr=False, compare=False)
    """What each of `KEYS` was read as."""
    hints: tuple[str, ...] = ()
    """Sentences about keys in `.env` that look like misspelt ones."""


def load_settings(environment: Mapping[str, str], env_file: Path) -> Settings:
    """Read the settings from `env_file`, which need not exist, and from `environment`, which wins.

    An empty value is as good as none. Raises `ConfigError` with everything that is wrong.
    """
    written, problems = _read_env_file(env_file)
    values: dict[str, Any] = {}
    for key in KEYS:
        value, origin = environment.get(key.name, "").strip(), "environment"
        if not value:
            value, origin = written.get(key.name, "").strip(), str(env_file)
        try:
            values[key.name] = key.parse(value or key.default) if value or key.default else None
        except ValueError as error:
            problems.append(f"{key.name}={_shown(key, value)} (from {origin}) {error}.")
    hints = _hints(written, env_file)
    if problems:
        raise ConfigError(_report(problems + list(hints)))
    return _settings(values, hints)


def _settings(values: Mapping[str, Any], hints: tuple[str, ...]) -> Settings:
    return Settings(
        discord_token=values["DISCORD_TOKEN"],
        model=values["MODEL"],
        precision=values["PRECISION"],
        provider=values["PROVIDER"],
        cache=values["LLAMA_CACHE"] or platformdirs.user_cache_path("llamacord", appauthor=False),
        database=values["DATABASE"],
        threads=values["THREADS"],
        max_concurrent=values["MAX_CONCURRENT"],
        context_tokens=values["CONTEXT_TOKENS"],
        max_queue=values["MAX_QUEUE"],
        models=values["MODELS"],
        operator_ids=values["OPERATOR_IDS"] or frozenset(),
        sees_all_messages=values["MESSAGE_CONTENT_INTENT"] == "on",
        chat=ChatParameters(
            system_prompt=values["SYSTEM_PROMPT"],
            guidance=Guidance(GuidanceChoice(values["GUIDANCE"]), is_kept=values["GUIDANCE_JOIN"] == "on"),
            limits=values["LIMITS"] or {},
            **{key.name.lower(): values[key.name] for key in _CHAT_KEYS},
        ),
        moderation_model=values["MODERATION_MODEL"],
        moderation_refuses_unchecked=values["MODERATION_UNSURE"] == "refuse",
        allowance=Allowance(values["USER_PER_MINUTE"], values["SERVER_PER_MINUTE"]),
        keeping=Keeping(values["RETENTION_DAYS"], values["GRACE_DAYS"]),
        metrics_port=values["METRICS_PORT"],
        shutdown_grace_s=values["SHUTDOWN_GRACE"],
        log_level=logging.getLevelNamesMapping()[values["LOG_LEVEL"].upper()],
        playground_port=values["PLAYGROUND_PORT"],
        logs_json=values["LOG_FORMAT"] == "json",
        values=values,
        hints=hints,
    )


def _read_env_file(env_file: Path) -> tuple[dict[str, str], list[str]]:
    """Return what `env_file` sets, without replacing `$…` in it, and what is wrong with its lines."""
    try:
        content = env_file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}, []
    except UnicodeDecodeError:
        raise ConfigError(f"{env_file} is not UTF-8 text: save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{env_file} cannot be read: {error.strerror}.") from None
    values: dict[str, str] = {}
    problems = []
    for binding in parse_stream(io.StringIO(content)):
        if binding.error:
            problems.append(f"Line {binding.original.line} of {env_file} is not of the form KEY=value.")
        elif binding.key:
            values[binding.key] = binding.value or ""
    return values, problems


def _hints(written: Mapping[str, str], env_file: Path) -> tuple[str, ...]:
    """Return a sentence for each key of the file that is none of ours but much like one.

    Only for the file: the environment is full of other programs' variables.
    """
    names = [key.name for key in KEYS]
    hints = []
    for name in written:
        if name in names:
            continue
        close = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.75)
        if close:
            hints.append(f"{name} in {env_file} is not a setting: did you mean {close[0]}?")
    return tuple(hints)


def _shown(key: Key, value: str) -> str:
    """Return a bad value on one line, cut short; a secret is never shown."""
    if key.is_secret:
        return "(hidden)"
    shown = value if len(value) <= _MAX_SHOWN_CHARACTERS else value[: _MAX_SHOWN_CHARACTERS - 1] + "…"
    return shown if shown.isprintable() else repr(shown)


def _report(problems: list[str]) -> str:
    """Return one text for all problems: a single sentence, or a list of them."""
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} things are wrong with the settings:", *(f"  {p}" for p in problems)])
