"""`python -m engine pull` as people call it, and a bot whose `MODEL` is at the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from bot.check import run_checks
from bot.config import Settings, load_settings
from engine.__main__ import main
from engine.configuring.models import find_model, model_here
from engine.configuring.reading import ConfigError
from engine.describing.manifest import load_manifest
from engine.hub.address import HubAddress
from tests.engine.hub.fake_hub import FakeHub, serving
from tests.engine.tiny_gguf import TinyGGUF

ROOT = Path(__file__).parents[3]
NAME = "somebody/Tiny-Chat-GGUF"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeHub]:
    (tmp_path / "served").mkdir()
    for kind in ("Q8_0", "Q4_0"):
        quant = gguf.GGMLQuantizationType[kind]
        TinyGGUF(quant_type=quant).save(tmp_path / "served" / f"tiny-{kind}.gguf")
    with serving(FakeHub()) as hub:
        hub.add(NAME, tmp_path / "served")
        yield hub


def pull(server: FakeHub, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(place / "hf"),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }
    environment.pop("HF_TOKEN", None)
    return subprocess.run(  # noqa: S603 - a fixed command
        [sys.executable, "-m", "engine", "pull", *arguments],
        env=environment,
        cwd=place,
        capture_output=True,
        text=True,
    )


def test_one_command_fetches_and_converts(server: FakeHub, tmp_path: Path) -> None:
    run = pull(server, tmp_path, f"hf:{NAME}:q4_0")
    assert run.returncode == 0, run.stderr
    manifest = load_manifest(tmp_path / "models" / "tiny-chat-gguf")
    assert manifest.precision == "int4"
    assert manifest.source["file"] == "tiny-Q4_0.gguf"
    assert "Downloading somebody/Tiny-Chat-GGUF" in run.stderr
    assert "Now add MODEL=models/tiny-chat-gguf to .env." in run.stderr
    again = pull(server, tmp_path, f"hf:{NAME}:q4_0")
    assert again.returncode == 1
    assert "models/tiny-chat-gguf already exists" in again.stderr


@pytest.mark.parametrize(
    ("address", "code", "sentence"),
    [
        ("hf:nobody/Nothing", 1, "llamacord: There is no model nobody/Nothing at 127.0.0.1"),
        (f"hf:{NAME}:Q9_0", 1, "has no Q9_0. There are Q4_0, Q8_0"),
        ("models/llama", 2, "must be hf:OWNER/NAME"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    address: str, code: int, sentence: str, server: FakeHub, tmp_path: Path
) -> None:
    run = pull(server, tmp_path, address)
    assert run.returncode == code
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr


def test_ctrl_c_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.hub.hub.Hub.look", look)
    assert main(["pull", f"hf:{NAME}"]) == 130
    assert "the same command continues it" in capsys.readouterr().err


def settings(server: FakeHub, place: Path, **more: str) -> Settings:
    values = {"MODEL": f"hf:{NAME}", "HF_ENDPOINT": server.endpoint, "LLAMA_CACHE": str(place / "cache")}
    return load_settings(values | more, place / ".env")


def test_a_bot_fetches_its_model_once(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    chosen = settings(server, tmp_path)
    assert chosen.model == HubAddress(NAME)
    assert model_here(chosen) is None
    finding = {
        found.subject: found for found in run_checks(_environment(server, tmp_path), tmp_path / ".env")
    }
    assert finding["Model"].sentence == f"hf:{NAME} isn't here yet; `run` downloads it."
    folder = find_model(chosen, lambda _stage, _share: None)
    assert load_manifest(folder).precision == "int4"
    assert model_here(chosen) == folder
    num_asked = len(server.asked)
    assert find_model(chosen, lambda _stage, _share: None) == folder
    assert len(server.asked) == num_asked
    finding = {
        found.subject: found for found in run_checks(_environment(server, tmp_path), tmp_path / ".env")
    }
    assert finding["Model"].is_good


def _environment(server: FakeHub, place: Path) -> dict[str, str]:
    return {"MODEL": f"hf:{NAME}", "HF_ENDPOINT": server.endpoint, "LLAMA_CACHE": str(place / "cache")}


def test_the_token_of_the_settings_is_sent_and_never_shown(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    server.gated[NAME] = "hf_secret"
    server.tokens.add("hf_secret")
    chosen = settings(server, tmp_path, HF_TOKEN="hf_secret")
    assert "hf_secret" not in repr(chosen)
    find_model(chosen, lambda _stage, _share: None)


def test_an_address_that_is_none_is_said_with_the_other_settings(server: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MODEL=hf:nobody .* must be hf:OWNER/NAME"):
        settings(server, tmp_path, MODEL="hf:nobody")
    with pytest.raises(ConfigError, match=r"HF_ENDPOINT=mirror .* must begin with https://"):
        settings(server, tmp_path, HF_ENDPOINT="mirror")
