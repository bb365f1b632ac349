"""The shelf of models: what is on it, and how much memory a switch needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bot.config import load_settings
from bot.conversation.model_switch import ClosableEngine
from bot.engines import sums_up
from bot.errors import ModelSwitchError
from bot.models import (
    ModelShelf,
    beside,
    kv_bytes,
    least_options,
    model_bytes,
    moderation_options,
)
from engine.configuring.models import engine_options
from engine.convert.default_model import NAME
from engine.describing.footprint import PROCESS_BYTES
from engine.engine import EngineOptions, draft_bytes
from engine.machine import machine
from engine.opening import open_folder
from engine.runtime.model_folder import DiskRoom
from engine.types import ModelInfo
from tests.bot.test_check import write_model
from tests.fakes import ScriptedEngine

OPTIONS = EngineOptions(max_concurrent=4)


async def open_engine(_folder: Path, _options: EngineOptions) -> ClosableEngine:
    return ScriptedEngine()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two chat models, a base model and something else."""
    for name, chat_format in (("small", "chatml"), ("other", "chatml"), ("base", None)):
        write_model(tmp_path / name, chat_format)
    (tmp_path / "notes").mkdir()
    return tmp_path


def shelf(models: Path, moderation: Path | None = None) -> ModelShelf:
    guard = None if moderation is None else open_folder(moderation)
    options = beside(OPTIONS, guard, is_loaded=True)
    return ModelShelf(models, models / "small", options, open_engine)


async def test_a_chat_template_is_for_the_first_model_alone(models: Path) -> None:
    seen: list[str] = []

    async def remember(folder: Path, options: EngineOptions) -> ClosableEngine:
        seen.append(f"{folder.name} {options.chat_format}")
        return ScriptedEngine()

    options = replace(OPTIONS, chat_format="vicuna")
    one = ModelShelf(models, models / "small", options, remember)
    await one.open("other")
    await one.open("small")
    assert seen == ["other ", "small vicuna"]


async def test_a_draft_model_is_for_the_first_model_alone_and_its_memory_counts(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Path | None]] = []

    async def remember(folder: Path, options: EngineOptions) -> ClosableEngine:
        seen.append((folder.name, options.draft_model))
        return ScriptedEngine()

    draft = models / "base"
    options = replace(OPTIONS, draft_model=draft, context_tokens=1000)
    one = ModelShelf(models, models / "small", options, remember)
    await one.open("other")
    await one.open("small")
    assert seen == [("other", None), ("small", draft)]
    assert moderation_options(options).draft_model is None
    model, small = open_folder(models / "small"), open_folder(draft)
    taken = small.running_bytes + 1000 * small.kv_bytes_per_token
    assert draft_bytes(model, options) == taken
    assert model_bytes(options, model) == model_bytes(replace(options, draft_model=None), model) + taken
    free = PROCESS_BYTES + model.running_bytes + taken
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: free)
    assert kv_bytes(options, model) < kv_bytes(replace(options, draft_model=None), model), "it leaves it room"
    assert one.missing_bytes("other", "small") == one.missing_bytes("small", "small") - taken
    assert draft_bytes(model, replace(options, draft_model=models / "notes")) == 0, "which the start refuses"


def test_only_what_can_chat_is_offered(models: Path) -> None:
    assert shelf(models).names() == ["small", "other"]


def test_an_unknown_model_is_refused_with_the_names_there_are(models: Path) -> None:
    with pytest.raises(ModelSwitchError, match="small, other"):
        shelf(models).missing_bytes("nothing", "small")


def test_the_weights_in_use_are_given_back_and_the_new_model_counts_whole(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 0)
    other = open_folder(models / "other")
    assert shelf(models).missing_bytes("other", "gone") == model_bytes(least_options(OPTIONS), other)
    # Both have the same weights, so that what is left is the KV of the new one.
    assert shelf(models).missing_bytes("other", "small") == kv_bytes(least_options(OPTIONS), other)
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 10**12)
    assert shelf(models).missing_bytes("other", "small") < 0


def test_the_moderation_models_kv_may_still_grow(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 0)
    guarded, alone = shelf(models, models / "base"), shelf(models)
    more = guarded.missing_bytes("other", "small") - alone.missing_bytes("other", "small")
    assert more == kv_bytes(moderation_options(OPTIONS), open_folder(models / "base")) > 0


def test_what_is_kept_of_conversations_leaves_the_moderation_model_its_memory(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, guard = open_folder(models / "small"), open_folder(models / "base")
    free = PROCESS_BYTES + model.running_bytes + guard.running_bytes + 3 * 2**20
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: free)
    options = beside(OPTIONS, guard, is_loaded=False)
    assert options.reserved_bytes == model_bytes(moderation_options(OPTIONS), guard)
    assert kv_bytes(options, model) < kv_bytes(OPTIONS, model)
    assert beside(OPTIONS, None, is_loaded=False) == OPTIONS
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 10**12)
    assert kv_bytes(moderation_options(OPTIONS), guard) < 1.1 * 2**20, "as little as can be"
    set_by_hand = EngineOptions(kv_cache_mb=64)
    assert moderation_options(set_by_hand).kv_cache_mb == 64


@pytest.mark.parametrize(
    ("setting", "of_the_default_model", "of_another"),
    [("auto", False, True), ("on", True, True), ("off", False, False)],
)
def test_the_default_model_sums_nothing_up_unless_it_is_told_to(
    tmp_path: Path, setting: str, of_the_default_model: bool, of_another: bool
) -> None:
    settings = load_settings({"SUMMARIES": setting}, tmp_path / ".env")
    info = ModelInfo(NAME, "int4", "cpu", "chatml", 4096, "")
    assert sums_up(settings, info) == of_the_default_model
    assert sums_up(settings, replace(info, name="llama-2-7b-chat")) == of_another


def test_kv_goes_to_the_cache_folder_where_that_is_wished_and_never_that_of_a_moderation_model(
    tmp_path: Path,
) -> None:
    def options(**environment: str) -> EngineOptions:
        return engine_options(load_settings({"LLAMA_CACHE": str(tmp_path), **environment}, tmp_path / ".env"))

    assert options().kv_disk is None
    wished = options(KV_DISK_MB="64")
    assert wished.kv_disk == DiskRoom(tmp_path, 64 * 2**20)
    assert moderation_options(wished).kv_disk is None


def test_where_free_memory_cannot_be_told_nothing_is_missing(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: None)
    assert shelf(models).missing_bytes("other", "small") == 0
