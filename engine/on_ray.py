"""The served engine as an application of Ray Serve, which deploy/ray.yaml starts: a replica is one engine.

It takes its settings from the environment, as `python -m engine serve` does. How many replicas there are, on
what, and how they end is said in deploy/ray.yaml.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from ray import serve

from engine.commands.serve import load_settings, serving_settings
from engine.configuring.models import engine_options, find_model
from engine.configuring.reading import ConfigError
from engine.engine import Engine
from engine.logs import configure_logging
from engine.serving.app import App, make_app
from engine.types import Health

FORGET_S = 10.0
"""How long replicas have to hear that they are to forget."""
_ENV_FILE = Path(".env")


class Replica:
    """One engine behind Ray's ingress."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it
        """Load the model. Raises `ConfigError`."""
        settings = load_settings(os.environ, _ENV_FILE)
        if not settings.keys:
            raise ConfigError("Replicas on Ray listen on all addresses: set ENGINE_KEYS before `ray start`.")
        configure_logging(settings.log_level, as_json=settings.logs_json)
        model = await asyncio.to_thread(find_model, settings, lambda *_: None)
        self._engine = await Engine.open(model, engine_options(settings))
        self._app = make_app(self._engine, serving_settings(settings))
        self._app.service.tell_others = self._tell_others

    def __serve_build_asgi_app__(self) -> App:
        """Return what answers requests, as Ray asks for it."""
        return self._app

    def forget(self) -> None:
        """Forget what was computed of deleted texts: another replica was told to."""
        self._engine.drop_idle_cache()

    async def _tell_others(self) -> None:
        """Have all replicas forget that run now, and wait for them. Raises whatever Ray raises."""
        us = serve.get_replica_context()
        others = serve.get_deployment_handle(us.deployment, us.app_name)
        await others.broadcast("forget").results_async(timeout_s=FORGET_S)

    async def check_health(self) -> None:
        """Raise where only a new replica helps: Ray then makes one."""
        if self._engine.health in (Health.UNHEALTHY, Health.CLOSED):
            raise RuntimeError(f"The engine is {self._engine.health}.")

    async def __del__(self) -> None:
        """Free the model; Ray has waited for what was running."""
        if engine := getattr(self, "_engine", None):
            await engine.close()


app = serve.deployment(serve.ingress()(Replica)).bind()
