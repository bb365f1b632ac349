"""`python -m engine serve`: the engine over HTTP, as OpenAI's API.

Takes its settings from the environment and `.env`, as the bot does. What serves is imported when it is asked
for: it is an extra.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from engine.commands import Subparsers
from engine.configuring.keys import ENGINE_KEYS, model_settings
from engine.configuring.models import engine_options, find_model
from engine.configuring.progress import showing_progress
from engine.configuring.reading import ConfigError, read_settings
from engine.hub.address import HubAddress
from engine.logs import configure_logging
from engine.serving.keys import ApiKey, is_private

if TYPE_CHECKING:
    from engine.serving.service import ServingSettings

_log = logging.getLogger(__name__)
_ENV_FILE = Path(".env")
_NEEDED = ("starlette", "uvicorn")
_ABOUT = """\
Serves the model over HTTP through OpenAI's API, until Ctrl-C or SIGTERM. It reads settings from the
environment and .env, as the bot does: MODEL, PRECISION, PROVIDER, THREADS, MAX_CONCURRENT, MAX_QUEUE,
ENGINE_KEYS and others, see .env.example and docs/serving.md. Options given here win.
"""
_SEVERAL = """\
several on one host:
  a GPU each       CUDA_VISIBLE_DEVICES=0 python -m engine serve --port 8324
                   CUDA_VISIBLE_DEVICES=1 python -m engine serve --port 8325
  own cores each   taskset -c 0-7 python -m engine serve --threads 8 --port 8324
                   taskset -c 8-15 python -m engine serve --threads 8 --port 8325
"""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the operator chose. Satisfies `ModelSettings`."""

    model: Path | HubAddress | None
    hub_token: str | None = field(repr=False)
    hub_endpoint: str | None
    precision: str
    provider: str
    cache: Path
    threads: int
    max_concurrent: int
    context_tokens: int
    kv_cache_mb: int
    kv_disk_mb: int
    chat_template: str
    draft_model: Path | None
    max_queue: int
    grace_s: int
    host: str
    port: int
    keys: tuple[ApiKey, ...]
    log_level: int
    logs_json: bool


def load_settings(
    environment: Mapping[str, str], env_file: Path, given: Mapping[str, object] | None = None
) -> ServerSettings:
    """Read the settings; what is `given` by key wins. Raises `ConfigError` with everything that is wrong."""
    written = {name: str(value) for name, value in (given or {}).items() if value is not None}
    values = read_settings(list(ENGINE_KEYS.values()), {**environment, **written}, env_file).values
    settings = ServerSettings(
        **model_settings(values),
        grace_s=values["SHUTDOWN_GRACE"],
        host=values["ENGINE_HOST"],
        port=values["ENGINE_PORT"],
        keys=values["ENGINE_KEYS"] or (),
        log_level=logging.getLevelNamesMapping()[values["LOG_LEVEL"].upper()],
        logs_json=values["LOG_FORMAT"] == "json",
    )
    if not settings.keys and not is_private(settings.host):
        raise ConfigError(
            f"ENGINE_HOST={settings.host} would let anybody on the network ask. Set ENGINE_KEYS to the keys "
            "of those who may, or leave ENGINE_HOST at 127.0.0.1."
        )
    return settings


def serving_settings(settings: ServerSettings) -> ServingSettings:
    """Return what holds for the app."""
    from engine.serving.service import ServingSettings

    return ServingSettings(
        keys=settings.keys,
        max_waiting=settings.max_queue,
        grace_s=settings.grace_s,
        is_private=is_private(settings.host),
    )


def add_to(commands: Subparsers) -> None:
    """Add the command's arguments."""
    command = commands.add_parser(
        "serve",
        help="serve a model through OpenAI's API",
        description=_ABOUT,
        epilog=_SEVERAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--model", help="a model's folder, or hf:OWNER/NAME; default: MODEL")
    command.add_argument("--host", help="address to listen on; default: ENGINE_HOST, or 127.0.0.1")
    command.add_argument(
        "--port", type=int, help="port to listen on, 0 for any; default: ENGINE_PORT, or 8324"
    )
    command.add_argument("--threads", type=int, help="CPU threads; default: THREADS, or one per core")
    command.set_defaults(act=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        install = f"{sys.executable} -m pip install 'starlette>=1,<2' 'uvicorn>=0.54,<0.60'"
        raise ConfigError(f"The server also needs {' and '.join(missing)}. Install them: {install}")
    given = {
        "MODEL": arguments.model,
        "ENGINE_HOST": arguments.host,
        "ENGINE_PORT": arguments.port,
        "THREADS": arguments.threads,
    }
    settings = load_settings(os.environ, _ENV_FILE, given)
    configure_logging(settings.log_level, as_json=settings.logs_json)
    with showing_progress(Console(stderr=True)) as on_progress:
        model = find_model(settings, on_progress)
    asyncio.run(_run(settings, model))
    return 0


async def _run(settings: ServerSettings, model: Path) -> None:
    from engine.engine import Engine
    from engine.serving.app import make_app
    from engine.serving.server import serve

    async with await Engine.open(model, engine_options(settings)) as engine:
        info = engine.info
        _log.info("Model %s (%s, %s) is loaded", info.name, info.precision, info.provider)
        app = make_app(engine, serving_settings(settings))
        await serve(
            app,
            settings.host,
            settings.port,
            on_ready=lambda url: print(f"Ready: {url}/v1 answers. Ctrl-C stops it.", flush=True),
        )
