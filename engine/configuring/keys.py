"""What a setting is, how its text is read, and the settings of an engine. `.env.example` says what for.

The readers come first. Pure: each raises `ValueError` saying what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from engine.hub.address import HubAddress
from engine.serving.keys import parse_keys

Number = TypeVar("Number", int, float)


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


def host(written: str) -> str:
    """Return the name or address of a machine."""
    if not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", written):
        raise ValueError("must be the name or the address of this machine, such as 127.0.0.1 or 0.0.0.0")
    return written


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its name, its default as it would be written, how it is read, and what is shown of it."""

    name: str
    default: str
    parse: Callable[[str], Any]
    is_secret: bool = False
    shown: Callable[[str], str] = str


_KEYS = (
    Key("MODEL", "", model),
    Key("HF_TOKEN", "", hub_token, is_secret=True),
    Key("HF_ENDPOINT", "", address),
    Key("CHAT_TEMPLATE", "", path),
    Key("DRAFT_MODEL", "", path),
    Key("PRECISION", "auto", choice("auto", "fp32", "fp16", "int8", "int4")),
    Key("PROVIDER", "auto", choice("auto", "cpu", "cuda")),
    Key("LLAMA_CACHE", "", path),
    Key("THREADS", "0", whole(0, 256)),
    Key("MAX_CONCURRENT", "8", whole(1, 128)),
    Key("CONTEXT_TOKENS", "0", whole(256, 131072, or_zero=True)),
    Key("KV_CACHE_MB", "0", whole(64, 1_000_000, or_zero=True)),
    Key("KV_DISK_MB", "0", whole(64, 10_000_000, or_zero=True)),
    Key("MAX_QUEUE", "64", whole(1, 10_000)),
    Key("SHUTDOWN_GRACE", "20", whole(0, 600)),
    Key("LOG_LEVEL", "info", choice("debug", "info", "warning", "error")),
    Key("LOG_FORMAT", "text", choice("text", "json")),
    Key("ENGINE_HOST", "127.0.0.1", host),
    Key("ENGINE_PORT", "8324", whole(0, 65535)),
    Key("ENGINE_KEYS", "", parse_keys, is_secret=True),
)
ENGINE_KEYS: dict[str, Key] = {key.name: key for key in _KEYS}
"""The settings of an engine and of its server, by name."""


def cache_folder() -> Path:
    """Return where models are kept unless LLAMA_CACHE says it."""
    return platformdirs.user_cache_path("llamacord", appauthor=False)


def engine_keys(*names: str) -> tuple[Key, ...]:
    """Return some of them, for a program that has others besides."""
    return tuple(ENGINE_KEYS[name] for name in names)


def model_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the settings say of the model and its engine, by the fields of those who are configured."""
    return {
        "model": values["MODEL"],
        "hub_token": values["HF_TOKEN"],
        "hub_endpoint": values["HF_ENDPOINT"],
        "precision": values["PRECISION"],
        "provider": values["PROVIDER"],
        "cache": values["LLAMA_CACHE"] or cache_folder(),
        "threads": values["THREADS"],
        "max_concurrent": values["MAX_CONCURRENT"],
        "context_tokens": values["CONTEXT_TOKENS"],
        "kv_cache_mb": values["KV_CACHE_MB"],
        "kv_disk_mb": values["KV_DISK_MB"],
        "max_queue": values["MAX_QUEUE"],
        "chat_template": str(values["CHAT_TEMPLATE"] or ""),
        "draft_model": values["DRAFT_MODEL"],
    }
