"""`check`: looks at everything the bot needs and says what is right, or what to do.

Only looks: downloads nothing, loads no model, leaves nothing behind. Shows no secret.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bot.config import Settings, load_settings
from bot.config_keys import bot_id
from bot.fleet.choice import ShardChoice
from bot.model_check import (
    Finding,
    check_draft_model,
    check_memory,
    check_precision,
    check_provider,
    check_speed,
    check_system_prompt,
)
from bot.models import better_model, moderation_model
from bot.on_discord.connection import PERMISSIONS, intents, invite_link, permission_names, privileged
from bot.server_check import check_engine, check_servers
from engine.advising.advice import figure
from engine.configuring.models import model_here
from engine.configuring.reading import ConfigError
from engine.convert.default_model import NAME
from engine.describing.footprint import size
from engine.errors import ModelError
from engine.opening import open_folder
from engine.runtime.model_folder import ModelFolder
from engine.text.prompt import make_chat_format
from storage.address import Location, PostgresAddress
from storage.database import Database
from storage.errors import StorageError
from storage.leases import Lease, Leases

_GIB = 2**30
_DEFAULT_MODEL_GIB = 1.0
"""Disk that download and conversion of the default model take at most."""


def run_checks(environment: Mapping[str, str], env_file: Path, *, measure: bool = False) -> Iterator[Finding]:
    """Check one thing after the other; without good settings nothing else can be checked.

    `measure` also has the model answer, which takes some seconds with a small one and more with a large one.
    """
    try:
        settings = load_settings(environment, env_file)
    except ConfigError as error:
        yield Finding(False, "Settings", str(error))
        return
    origin = f"read from {env_file} and the environment" if env_file.exists() else "from the environment"
    yield Finding(True, "Settings", f"all fine, {origin}.")
    for hint in settings.hints:
        yield Finding(False, "Settings", hint)
    yield from check_discord(settings)
    if settings.engine:
        yield from check_engine(settings)
    else:
        yield from _check_here(settings, measure=measure)
    if isinstance(settings.moderation_model, Path):
        yield _check_moderation_model(settings.moderation_model)
    elif settings.moderation_model is not None:
        yield from check_servers(settings, "Moderation", settings.moderation_model)
    database = _check_database(settings.database)
    yield database
    if settings.values.get("SHARDS") is not None and database.is_good:
        yield _check_shards(settings.shards, settings.database)
    is_missing = settings.model is None and not settings.engine and model_here(settings) is None
    yield _check_cache(settings, needs_space=is_missing)


def _check_here(settings: Settings, *, measure: bool) -> Iterator[Finding]:
    """Check the model that runs in the bot's process."""
    model, finding = _check_model(settings)
    yield finding
    if model is not None and model.notice:
        yield Finding(True, "Model", model.notice)
    yield check_provider(settings, model)
    if model is None or model.name == NAME:
        yield _better_model(settings)
    if model is not None:
        yield check_memory(settings, model, moderation_model(settings))
        yield check_system_prompt(settings, model)
        yield check_precision(settings, model)
    folder = model_here(settings)
    if measure and folder is not None and finding.is_good:
        yield check_speed(settings, folder)
    if settings.draft_model is not None and model is not None:
        yield check_draft_model(settings, model, settings.draft_model)


def _check_model(settings: Settings) -> tuple[ModelFolder | None, Finding]:
    """Read every byte of the model and compare checksums."""
    folder = model_here(settings)
    if folder is None:
        which = "the default model" if settings.model is None else str(settings.model)
        download = " (93 MB)" if settings.model is None else ""
        return None, Finding(False, "Model", f"{which} isn't here yet; `run` downloads it{download}.")
    try:
        model = open_folder(folder)
    except ModelError as error:
        return None, Finding(False, "Model", str(error))
    try:
        model.verify()
    except ModelError as error:
        return model, Finding(False, "Model", str(error))
    if settings.chat_template:
        try:
            make_chat_format(model, model.load_tokenizer(), settings.chat_template)
        except ModelError as error:
            return model, Finding(False, "Chat template", str(error))
    elif model.chat.format is None:
        return model, Finding(
            False,
            "Model",
            f"{model.name} is a base model and can't chat: choose a fine-tuned one, or set "
            "CHAT_TEMPLATE to how it was trained to chat.",
        )
    return model, Finding(True, "Model", f"{model.name} ({model.precision}) in {folder} is complete.")


def _better_model(settings: Settings) -> Finding:
    """Say which model suits this machine better than the default one, which is a toy."""
    better = better_model(settings)
    if better is None:
        return Finding(True, "Better model", "none fits into the free memory here.")
    speed = f"about {figure(better.speed, 2)} tokens a second, " if better.speed is not None else ""
    return Finding(
        True,
        "Better model",
        f"{better.entry.name} suits this machine ({speed}{size(better.memory_bytes)} of memory): set "
        f"MODEL={better.entry.address}. `python -m engine models` lists others.",
    )


def _check_moderation_model(folder: Path) -> Finding:
    """Read every byte of the moderation model, and see whether it can be given Llama Guard's prompt."""
    try:
        model = open_folder(folder)
        model.verify()
        make_chat_format(model, model.load_tokenizer(), "llama-2")
    except ModelError as error:
        return Finding(False, "Moderation", f"{error} Change MODERATION_MODEL.")
    return Finding(True, "Moderation", f"{model.name} ({model.precision}) in {folder} is complete.")


def _check_shards(choice: ShardChoice, location: Location) -> Finding:
    """Say which shards this process is to have, and which others have now."""
    if not isinstance(location, PostgresAddress):
        if not choice.are_all:
            return Finding(False, "Shards", choice.needs_postgres)
        return Finding(True, "Shards", f"all {choice.count}, in this process.")
    taken = asyncio.run(_leases(location))
    free = [one for one in choice.candidates() if not any(lease.shard_id in one.ids for lease in taken)]
    if any(one.num_shards != choice.count for one in taken):
        others = taken[0].num_shards
        return Finding(
            False, "Shards", f"other processes use {others} shards in all, but SHARDS says {choice.count}."
        )
    now = f"; other processes have {len(taken)} of {choice.count} now" if taken else ""
    if choice.is_fixed:
        wanted = next(choice.candidates())
        return Finding(bool(free), "Shards", f"{wanted} in this process{now}.")
    waits = "" if free else ", so it will stand by"
    return Finding(True, "Shards", f"any {choice.size} of {choice.count} in this process{now}{waits}.")


async def _leases(location: Location) -> list[Lease]:
    async with await Database.open(location, busy_timeout_s=2.0) as database:
        return await Leases(database).all()


def _check_database(path: Location) -> Finding:
    """Open it and take the writer's lock; a file that does not exist yet is not created."""
    if isinstance(path, Path) and not path.exists():
        problem = _write_problem(path.parent)
        if problem is not None:
            return Finding(False, "Database", f"{path} can't be created: {problem}. Change DATABASE.")
        return Finding(True, "Database", f"{path} will be created at the first start.")
    try:
        asyncio.run(_lock(path))
    except StorageError as error:
        return Finding(False, "Database", f"{path}: {error}")
    return Finding(True, "Database", f"{path} can be read and written.")


async def _lock(path: Location) -> None:
    async with await Database.open(path, busy_timeout_s=2.0) as database, database.transaction():
        pass


def _check_cache(settings: Settings, *, needs_space: bool) -> Finding:
    folder = settings.cache
    problem = _write_problem(folder)
    if problem is not None:
        return Finding(False, "Cache", f"{folder} can't be used: {problem}. Change LLAMA_CACHE.")
    num_free, for_kv = shutil.disk_usage(_nearest(folder)).free, settings.kv_disk_mb * 2**20
    free = num_free / _GIB
    if needs_space and free < _DEFAULT_MODEL_GIB:
        return Finding(
            False,
            "Cache",
            f"{folder} has {free:.1f} GiB free and the model needs {_DEFAULT_MODEL_GIB:.0f} GiB.",
        )
    if num_free < for_kv:
        sentence = f"{folder} has {free:.1f} GiB free, and up to {size(for_kv)} of KV may go there"
        return Finding(False, "Cache", f"{sentence}. Lower KV_DISK_MB.")
    kept = f" Up to {size(for_kv)} may hold what doesn't fit in memory." if for_kv else ""
    return Finding(True, "Cache", f"{folder} can be written; {free:.1f} GiB free.{kept}")


def _write_problem(folder: Path) -> str | None:
    """Return why no file can be created in `folder`, or in what it would be created in, or None."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            return None
    except OSError as error:
        return error.strerror or "unknown reason"


def _nearest(folder: Path) -> Path:
    """Return `folder`, or the first one above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def check_discord(settings: Settings) -> Iterator[Finding]:
    """Say whose token it is, which switches the application needs, and how to invite it."""
    if settings.discord_token is None:
        yield Finding(True, "Token", "none; `run` opens the playground. Set DISCORD_TOKEN for Discord.")
        return
    application_id = bot_id(settings.discord_token)
    yield Finding(True, "Token", f"looks right; it belongs to the bot {application_id}.")
    needed = privileged(intents(sees_all_messages=settings.sees_all_messages))
    switches = f"switch on {', '.join(needed)}" if needed else "none needed: leave all switches off"
    yield Finding(True, "Intents", f"{switches} on the application's Bot page.")
    if application_id is not None:
        granted = ", ".join(permission_names(PERMISSIONS))
        yield Finding(True, "Invite", f"{invite_link(application_id)} adds the bot to a server ({granted}).")
