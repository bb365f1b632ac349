"""`python -m engine serve`: which settings it takes, what it refuses, and a whole process of it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from engine.__main__ import main
from engine.commands.serve import load_settings, serving_settings
from engine.configuring.keys import ENGINE_KEYS
from engine.configuring.reading import ConfigError
from tests.engine.tiny_model import make_tiny_model

SECRET = "sk-0123456789abcdef"


def test_nothing_set_serves_this_machine_alone(tmp_path: Path) -> None:
    settings = load_settings({}, tmp_path / ".env")
    assert (settings.host, settings.port, settings.keys) == ("127.0.0.1", 8324, ())
    assert serving_settings(settings).is_private
    assert (serving_settings(settings).max_waiting, serving_settings(settings).grace_s) == (64, 20)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("THREADS=1\nENGINE_PORT=1\nMAX_QUEUE=7\nDISCORD_TOKEN=x\n")
    given = {"THREADS": 3, "ENGINE_PORT": None, "MODEL": "somewhere"}
    settings = load_settings({"THREADS": "2", "ENGINE_PORT": "2"}, tmp_path / ".env", given)
    assert (settings.threads, settings.port, settings.max_queue) == (3, 2, 7)
    assert settings.model == Path("somewhere")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "engine.example"])  # noqa: S104
def test_it_does_not_listen_elsewhere_without_a_key(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="anybody on the network ask"):
        load_settings({"ENGINE_HOST": host}, tmp_path / ".env")
    settings = load_settings({"ENGINE_HOST": host, "ENGINE_KEYS": f"bot:{SECRET}"}, tmp_path / ".env")
    assert not serving_settings(settings).is_private
    assert SECRET not in repr(settings)


def test_a_bad_key_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ENGINE_KEYS=\(hidden\)") as caught:
        load_settings({"ENGINE_KEYS": f"bot:{SECRET} fast"}, tmp_path / ".env")
    assert SECRET not in str(caught.value)


def test_every_setting_of_the_server_is_in_the_example() -> None:
    example = (Path(__file__).parents[3] / ".env.example").read_text(encoding="utf-8")
    for name in ENGINE_KEYS:
        assert f"\n#{name}=" in example


def test_without_its_packages_it_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert main(["serve"]) == 1
    assert "pip install" in capsys.readouterr().err


def test_a_whole_process_answers_and_ends_when_it_is_told(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    environment = {name: value for name, value in os.environ.items() if name not in ENGINE_KEYS}
    command = [sys.executable, "-m", "engine", "serve", "--model", str(model), "--port", "0"]
    root = Path(__file__).parents[3]
    with subprocess.Popen(  # noqa: S603 - this program
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(root), "THREADS": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            url = ready.split()[1].removesuffix("/v1")
            with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:  # noqa: S310 - ours
                assert answer.status == 200
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
