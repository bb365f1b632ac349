"""A replica on Ray has all others forget: over a stand-in for Ray, which is not installed with the tests."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from engine.serving.service import ServingSettings
from tests.engine.serving.served import Client, ServedScripts
from tests.virtual_time import run


class Ray:
    """Two replicas of one deployment. `fault` is what one of them answers with."""

    def __init__(self) -> None:
        self.replicas: list[Any] = []
        self.asked: list[tuple[str, str]] = []
        self.fault: Exception | None = None

    def get_deployment_handle(self, deployment: str, app: str) -> Ray:
        self.asked.append((deployment, app))
        return self

    def broadcast(self, method: str) -> Ray:
        for replica in self.replicas:
            getattr(replica, method)()
        return self

    async def results_async(self, *, timeout_s: float) -> list[None]:
        assert timeout_s == 10.0
        if self.fault is not None:
            raise self.fault
        return []


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    stand_in, serve = Ray(), types.ModuleType("ray.serve")
    names: dict[str, Any] = {
        "deployment": lambda _: types.SimpleNamespace(bind=lambda: None),
        "ingress": lambda: lambda replica: replica,
        "get_replica_context": lambda: types.SimpleNamespace(deployment="Replica", app_name="llamacord"),
        "get_deployment_handle": stand_in.get_deployment_handle,
    }
    vars(serve).update(names)
    module = types.ModuleType("ray")
    vars(module)["serve"] = serve
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    monkeypatch.delitem(sys.modules, "engine.on_ray", raising=False)
    yield stand_in
    sys.modules.pop("engine.on_ray", None)


def test_whichever_replica_is_told_to_forget_all_do(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    on_ray = importlib.import_module("engine.on_ray")
    engines = [ServedScripts(), ServedScripts()]
    unopened = iter(engines)

    class Engine:
        @staticmethod
        async def open(*_: object) -> ServedScripts:
            return next(unopened)

    for name in ("configure_logging", "engine_options", "find_model"):
        monkeypatch.setattr(on_ray, name, lambda *_, **__: None)
    settings = types.SimpleNamespace(keys=("a key",), log_level="INFO", logs_json=False)
    monkeypatch.setattr(on_ray, "load_settings", lambda *_: settings)
    monkeypatch.setattr(on_ray, "serving_settings", lambda _: ServingSettings())
    monkeypatch.setattr(on_ray, "Engine", Engine)
    del on_ray.Replica.__del__  # which Ray awaits

    async def scene() -> None:
        for _ in engines:
            replica = on_ray.Replica.__new__(on_ray.Replica)
            await replica.__init__()
            ray.replicas.append(replica)
        for replica in ray.replicas:
            before = [engine.num_drops for engine in engines]
            assert (await Client(replica.__serve_build_asgi_app__()).post("/engine/forget")).status == 204
            assert all(engine.num_drops > num for engine, num in zip(engines, before, strict=True))
        assert ray.asked == [("Replica", "llamacord")] * 2
        ray.fault = TimeoutError()
        answer = await Client(replica.__serve_build_asgi_app__()).post("/engine/forget")
        assert (answer.status, answer.error["code"]) == (503, "not_told")

    run(scene())
