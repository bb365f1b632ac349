"""Where answers come from is chosen by the settings, and a bot whose model runs elsewhere loads none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bot.config import Settings, load_settings
from bot.conversation.model_switch import ClosableEngine
from bot.engines import RemoteEngines, RemoteShelf, choose_engines, servers_of
from bot.errors import ModelSwitchError
from bot.models import LocalEngines
from engine.configuring.reading import ConfigError
from engine.remote.remote_engine import Servers
from tests.fakes import ScriptedEngine

ROOT = Path(__file__).parents[2]
RUNS_MODELS = ("onnxruntime", "onnx", "numpy", "gguf", "huggingface_hub")
PROBE = f"""
import sys
from bot import app, cli
from bot.engines import choose_engines
from pathlib import Path
from bot.config import load_settings
settings = load_settings({{"ENGINE": "http://127.0.0.1:1"}}, Path("none"))
chosen = choose_engines(settings, lambda *_: None)
print([name for name in {RUNS_MODELS!r} if name in sys.modules], type(chosen).__name__)
"""


def settings_of(**values: str) -> Settings:
    return load_settings(values, Path("/nowhere/.env"))


def test_a_bot_with_servers_loads_nothing_that_could_run_a_model() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, env=environment, check=True)  # noqa: S603
    assert ran.stdout.decode().split("\n")[0] == "[] RemoteEngines"


def test_the_settings_choose(tmp_path: Path) -> None:
    here = choose_engines(settings_of(MODEL=str(tmp_path)), lambda *_: None)
    assert isinstance(here, LocalEngines)
    there = choose_engines(settings_of(ENGINE="http://a:1"), lambda *_: None)
    assert isinstance(there, RemoteEngines)
    assert there.may_work_ahead() is not None
    assert (
        choose_engines(settings_of(ENGINE="http://a:1", WORK_AHEAD="off"), lambda *_: None).may_work_ahead()
        is None
    )


def test_addresses_are_read() -> None:
    settings = settings_of(
        ENGINE=" http://a:8000/ ,https://b/llama/,http://a:8000",
        ENGINE_KEY="k",
        ENGINE_REPLICAS="http://[::1]:1",
        MODERATION_MODEL="https://guard:1,https://guard:2",
        MODELS="big=http://c:1,http://d:1 small=https://e",
    )
    assert settings.engine == ("http://a:8000", "https://b/llama")
    assert settings.engine_replicas == ("http://[::1]:1",)
    assert settings.moderation_model == ("https://guard:1", "https://guard:2")
    assert settings.models == {"big": ("http://c:1", "http://d:1"), "small": ("https://e",)}
    assert settings_of(MODERATION_MODEL="/guard").moderation_model == Path("/guard")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ENGINE": "a:8000"}, "addresses like"),
        ({"ENGINE": ","}, "addresses like"),
        ({"ENGINE": "http://user:password@a"}, "addresses like"),
        ({"ENGINE": "http://a?x=1"}, "addresses like"),
        ({"ENGINE": "http://a", "ENGINE_KEY": "two words"}, "without spaces"),
        ({"ENGINE": "http://a", "MODEL": "/m"}, "both set"),
        ({"ENGINE": "http://a", "MODELS": "/m"}, "names with addresses"),
        ({"MODELS": "big=http://a"}, "names with addresses"),
        ({"ENGINE": "http://a", "MODELS": "big=http://a =http://b"}, "names with addresses"),
    ],
)
def test_what_cannot_be_is_told(values: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        settings_of(**values)
    assert "two words" not in str(caught.value)


def test_nobody_learns_which_conversation_is_whose_from_what_servers_get(tmp_path: Path) -> None:
    token = "MTAwMDAwMDAwMDAwMDAwMDAw.abc.def"
    one, other = (
        servers_of(settings_of(ENGINE="http://a", DISCORD_TOKEN=token, ENGINE_KEY=key), ("http://a",))
        for key in ("k", "l")
    )
    assert one.secret != other.secret
    for servers in (one, other):
        assert not re.search("abc|secret|'k'", repr(servers))


def test_servers_that_are_not_in_use_are_told_to_forget_too() -> None:
    settings = settings_of(
        ENGINE="http://a", ENGINE_REPLICAS="http://b,http://c", MODELS="big=http://d,http://b"
    )
    engines = RemoteEngines(settings)
    engines.name = "small"
    shelf = engines.shelf()
    assert isinstance(shelf, RemoteShelf)
    for name in ("small", "big"):
        assert shelf._servers[name].replicas == ("http://b", "http://c", "http://d")


async def test_models_elsewhere_are_switched_to_by_their_names(tmp_path: Path) -> None:
    asked: list[Servers] = []

    async def open_engine(servers: Servers) -> ClosableEngine:
        asked.append(servers)
        return ScriptedEngine()

    big, small = Servers(("http://big",), tmp_path), Servers(("http://small",), tmp_path)
    shelf = RemoteShelf({"big": big, "small": small}, open_engine)
    assert shelf.names() == ["big", "small"]
    assert shelf.missing_bytes("small", "big") == 0
    assert isinstance(await shelf.open("small"), ScriptedEngine)
    assert asked == [small]
    with pytest.raises(ModelSwitchError):
        shelf.missing_bytes("huge", "big")


def test_the_shelf_has_the_model_of_the_start_and_those_that_are_named() -> None:
    engines: Any = RemoteEngines(
        settings_of(ENGINE="http://a", MODELS="big=http://b", CHAT_TEMPLATE="chatml")
    )
    engines.name = "first"
    assert engines.shelf().names() == ["first", "big"]
    assert [servers.chat_format for servers in engines.shelf()._servers.values()] == ["chatml", ""]
