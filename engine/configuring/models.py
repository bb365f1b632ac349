"""Which model the settings mean, where it is, and how the engine is to run it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from engine.convert.default_model import (
    DEFAULT_PRECISION,
    Progress,
    default_model_folder,
    ensure_default_model,
)
from engine.describing.architecture import Precision
from engine.engine import EngineOptions
from engine.hub.address import HubAddress, pulled_folder
from engine.runtime.model_folder import DiskRoom


class ModelSettings(Protocol):
    """What was chosen. `.env.example` says what each means."""

    @property
    def model(self) -> Path | HubAddress | None: ...

    @property
    def hub_token(self) -> str | None: ...

    @property
    def hub_endpoint(self) -> str | None: ...

    @property
    def precision(self) -> str: ...

    @property
    def provider(self) -> str: ...

    @property
    def cache(self) -> Path: ...

    @property
    def threads(self) -> int: ...

    @property
    def max_concurrent(self) -> int: ...

    @property
    def context_tokens(self) -> int: ...

    @property
    def kv_cache_mb(self) -> int: ...

    @property
    def kv_disk_mb(self) -> int: ...

    @property
    def chat_template(self) -> str: ...

    @property
    def draft_model(self) -> Path | None: ...


def default_precision(settings: ModelSettings) -> Precision:
    """Return the precision of the default model."""
    return DEFAULT_PRECISION if settings.precision == "auto" else Precision(settings.precision)


def engine_options(settings: ModelSettings) -> EngineOptions:
    """Return how the engine is to run."""
    return EngineOptions(
        num_threads=settings.threads,
        max_concurrent=settings.max_concurrent,
        context_tokens=settings.context_tokens,
        kv_cache_mb=settings.kv_cache_mb,
        device=settings.provider,
        chat_format=settings.chat_template,
        kv_disk=DiskRoom(settings.cache, settings.kv_disk_mb * 2**20) if settings.kv_disk_mb else None,
        draft_model=settings.draft_model,
    )


def find_model(settings: ModelSettings, on_progress: Progress) -> Path:
    """Return the model's folder; fetch and convert it where it is the default one or at Hugging Face.

    Blocking, seconds to minutes the first time. Raises `ModelError`.
    """
    if isinstance(settings.model, HubAddress):
        from engine.hub.hub import Hub  # takes a start a third of a second
        from engine.hub.pulling import ensure_pulled

        hub = Hub(settings.hub_endpoint, settings.hub_token)
        return ensure_pulled(
            settings.cache,
            settings.model,
            _hub_precision(settings),
            hub,
            on_progress,
            has_chat_template=bool(settings.chat_template),
        )
    if settings.model is not None:
        return settings.model
    return ensure_default_model(settings.cache, default_precision(settings), on_progress)


def model_here(settings: ModelSettings) -> Path | None:
    """Return the model's folder without fetching anything, None where it still has to be fetched."""
    if isinstance(settings.model, HubAddress):
        return pulled_folder(settings.cache, settings.model, _hub_precision(settings))
    if settings.model is not None:
        return settings.model
    folder = default_model_folder(settings.cache, default_precision(settings))
    return folder if folder.exists() else None


def _hub_precision(settings: ModelSettings) -> Precision | None:
    """Return the precision of a model from Hugging Face, None for what suits file and machine."""
    return None if settings.precision == "auto" else Precision(settings.precision)
