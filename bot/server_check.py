"""The part of `check` that asks servers: whether each answers, with which model, and how it is."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bot.config import Settings
from bot.model_check import Finding
from engine.errors import ModelFormatError
from engine.remote.description import Cabinet, RemoteModel
from engine.remote.http_wire import HttpWire
from engine.remote.replica import Report, State
from engine.remote.wire import Patience, RefusedError, WireError

_PATIENCE = Patience(connect_s=5.0, silence_s=5.0, ask_s=20.0)
_SHOWN = 12
"""Characters of a fingerprint."""
_NUM_LOOKS = 6
"""A balancer answers these from different servers."""
_HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Seen:
    """What one address says: its model and how each server behind it is, or what is wrong."""

    address: str
    model: RemoteModel | None = None
    reports: tuple[Report, ...] = ()
    problem: str = ""


def check_engine(settings: Settings) -> Iterator[Finding]:
    """Check the servers that answer questions, those behind a balancer, and those that `/model` offers."""
    yield from check_servers(settings, "Engine", settings.engine)
    if settings.engine_replicas:
        yield from check_servers(settings, "Replica", settings.engine_replicas)
    if settings.models is not None and not isinstance(settings.models, Path):
        for name, addresses in settings.models.items():
            yield from check_servers(settings, f"Model {name}", addresses)


def check_servers(settings: Settings, subject: str, addresses: Sequence[str]) -> Iterator[Finding]:
    """Ask each address."""
    found = asyncio.run(_look(settings, addresses))
    prints = {seen.model.description.fingerprint for seen in found if seen.model is not None}
    for seen in found:
        if seen.model is None:
            yield Finding(False, subject, f"{seen.address}: {seen.problem}")
            continue
        info, fingerprint = seen.model.info, seen.model.description.fingerprint[:_SHOWN]
        states = sorted({report.state for report in seen.reports})
        sentence = (
            f"{seen.address} has {info.name} ({info.precision}, {info.provider}) with {info.context_length} "
            f"tokens, fingerprint {fingerprint}, and is {' and '.join(states)}"
        )
        if info.chat_format is None:
            yield Finding(False, subject, f"{sentence}. It is a base model and can't chat.")
        elif len(prints) > 1:
            yield Finding(False, subject, f"{sentence}. All must have the same model.")
        else:
            yield Finding(states == [State.READY], subject, f"{sentence}.")
        if len({report.instance for report in seen.reports}) > 1 and not settings.engine_replicas:
            sentence = (
                "is a balancer. Set ENGINE_REPLICAS to the servers behind it, so that all can be told to"
            )
            yield Finding(False, subject, f"{seen.address} {sentence} forget texts that are deleted.")
    yield from _unencrypted(settings, subject, addresses)


def _unencrypted(settings: Settings, subject: str, addresses: Sequence[str]) -> Iterator[Finding]:
    """Say where key and texts cross a network in the clear."""
    parts = [urlsplit(address) for address in addresses]
    if settings.engine_key and any(one.scheme == "http" and one.hostname not in _HERE for one in parts):
        sentence = "ENGINE_KEY and all texts go to it unencrypted: keep that network private, or use https."
        yield Finding(True, subject, sentence)


async def _look(settings: Settings, addresses: Sequence[str]) -> list[Seen]:
    wire = HttpWire(settings.engine_key or "", _PATIENCE)
    try:
        with tempfile.TemporaryDirectory(prefix="llamacord-check-") as folder:
            cabinet = Cabinet(Path(folder))
            return [await _look_at(wire, cabinet, address) for address in addresses]
    finally:
        await wire.close()


async def _look_at(wire: HttpWire, cabinet: Cabinet, address: str) -> Seen:
    try:
        model = await cabinet.fetch(wire, address)
        reports = [Report.read(await wire.get(address, "/engine/load")) for _ in range(_NUM_LOOKS)]
    except WireError as error:
        return Seen(address, problem=f"cannot be reached: {error}. Is the server running there?")
    except RefusedError as error:
        remedy = " Check ENGINE_KEY." if error.status in (401, 403) else ""
        return Seen(address, problem=f"refuses this bot: {error}{remedy}")
    except ModelFormatError as error:
        return Seen(address, problem=str(error))
    return Seen(address, model, tuple(reports))
