"""The command line: what ends with which sentence and exit code, and that nothing shows a traceback."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import discord
import pytest
from aiohttp import web

from bot import cli
from bot.on_discord import connection
from bot.on_discord.connection import StartError
from engine.convert.default_model import DEFAULT_PRECISION, default_model_folder
from storage.opening import locked
from tests.bot.test_check import TOKEN, impatient, write_model
from tests.engine.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start in, with all that is written going below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "configure_logging", lambda *_args, **_kwargs: None)
    for key in ("DISCORD_TOKEN", "MODEL", "DATABASE", "LOG_LEVEL"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the program, which must fail, and return what it says."""
    assert cli.main(arguments) == cli.EXIT_FAILURE
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    _, prefix, said = captured.err.partition("llamacord: ")
    assert prefix
    return said


@pytest.mark.parametrize("command", [(), ("run",), ("chat",), ("playground",)])
def test_every_bad_setting_is_named_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    (folder / ".env").write_text("TEMPERATURE=hot\nTHREADS=-1\nDISCORD_TOKEN=secret\n", encoding="utf-8")
    said = failure(capsys, *command)
    assert "TEMPERATURE=hot" in said
    assert "THREADS=-1" in said
    assert "DISCORD_TOKEN=(hidden)" in said
    assert "secret" not in said


@pytest.mark.parametrize("command", ["run", "chat", "playground"])
def test_a_wrong_model_folder_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("MODEL", "nowhere")
    assert "no model folder at nowhere" in failure(capsys, command)
    (folder / "nowhere").mkdir()
    assert "nowhere is not a model: it has no config.json" in failure(capsys, command)


def test_an_unwritable_cache_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("LLAMA_CACHE", str(folder / "file" / "cache"))
    said = failure(capsys, "chat")
    assert "LLAMA_CACHE" in said
    assert said.count("\n") == 1


def test_a_busy_database_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(folder / "model")
    monkeypatch.setenv("MODEL", "model")
    monkeypatch.setenv("DATABASE", "busy.sqlite3")
    other = sqlite3.connect("busy.sqlite3", isolation_level=None)
    try:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        impatient(monkeypatch)
        assert "Another program is using the database." in failure(capsys, "chat")
    finally:
        other.close()


def test_a_second_bot_on_one_database_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(folder / "model")
    monkeypatch.setenv("MODEL", "model")
    monkeypatch.setenv("DATABASE", "data/test.sqlite3")
    with locked(Path("data/test.sqlite3")):
        assert "Another Llamacord is running with this database." in failure(capsys, "chat")


def test_no_network_at_the_first_start_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(key)
    for key, value in {
        "CONFIG_FILE": os.devnull, "INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0", "TIMEOUT": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"PIP_{key}", value)
    said = failure(capsys, "chat")
    assert said.count("\n") == 1
    assert "could not be downloaded" in said
    assert "Check the network" in said
    assert not list((folder / "cache").rglob("*.gguf"))


def test_a_misspelt_key_is_said_and_does_not_end_the_program(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("TOPK=3\n", encoding="utf-8")
    monkeypatch.setenv("MODEL", "nowhere")
    assert "did you mean TOP_K?" in failure(capsys, "chat")


def test_a_fault_of_our_own_says_so_and_is_logged_with_its_traceback(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_model(*_arguments: object) -> Path:
        raise ZeroDivisionError("inner workings")

    monkeypatch.setattr("engine.configuring.models.find_model", find_model)
    said = failure(capsys, "chat")
    assert "bug in Llamacord" in said
    assert "inner workings" not in said
    assert caplog.records[-1].exc_info is not None


def test_ctrl_c_ends_quietly(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_model(*_arguments: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.configuring.models.find_model", find_model)
    assert cli.main(["run"]) == 130
    assert capsys.readouterr().err == ""


def test_check_ends_with_0_or_1_and_one_line_each(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(folder / "model")
    monkeypatch.setenv("MODEL", "model")
    assert cli.main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert all(line.startswith("✔ ") for line in lines)

    (folder / "model" / "weights.bin").unlink()
    assert cli.main(["check"]) == 1
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == list("✔✔✘✔✔✔✔✔✔")


def test_the_version_and_the_help_name_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for option, expected in (("--version", "llamacord 0."), ("--help", "playground")):
        with pytest.raises(SystemExit) as caught:
            cli.main([option])
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out


_TALK = """
import sys
from bot.cli import main
code = main(["chat"])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
NOT_NEEDED = (
    "aiohttp.web", "bot.check", "bot.playground", "charset_normalizer", "engine.advising", "engine.bench",
    "engine.convert.converter", "engine.convert.gguf_source", "engine.gpu", "engine.release.model", "gguf",
    "jinja2", "simcord", "yaml",
)  # fmt: skip
"""What takes a start time and is for others: who converts, has a GPU, looks at the playground or checks."""


def test_a_start_on_the_cpu_imports_only_what_it_needs(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    make_tiny_model(default_model_folder(cache, DEFAULT_PRECISION), DEFAULT_PRECISION)
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", _TALK],
        cwd=tmp_path,
        input="Hello\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={
            **{key: value for key, value in os.environ.items() if key not in ("DISCORD_TOKEN", "MODEL")},
            "PYTHONPATH": str(ROOT),
            "LLAMA_CACHE": str(cache),
            "DATABASE": str(tmp_path / "bot.db"),
            "MAX_NEW_TOKENS": "4",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.splitlines()[-1].split())
    assert {"onnxruntime", "discord", "engine.cpu.model", "engine.graphs.decoder"} <= loaded
    assert not [name for name in NOT_NEEDED if name in loaded]


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["dance"])
    assert caught.value.code == 2
    assert "dance" in capsys.readouterr().err


def test_a_python_without_the_packages_is_one_sentence() -> None:
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import bot.__main__",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    assert done.returncode == 1
    assert "make run" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_default_model_talks_in_a_pipe_and_passes_the_check(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
        "MAX_NEW_TOKENS": "8",
        "DISCORD_TOKEN": "",
        "DATABASE": str(tmp_path / "test.sqlite3"),
    }

    def run(command: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", "bot", command],
            input=typed, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
        )  # fmt: skip

    talk = run("chat", "What is the capital of France?\n/reset\n")
    assert talk.returncode == 0, talk.stderr
    assert "Traceback" not in talk.stderr
    assert talk.stdout.splitlines()[-1] == "Done: I forgot 2 messages. This conversation starts afresh."
    assert len(talk.stdout) > len("Done: I forgot 2 messages. This conversation starts afresh.\n")
    check = run("check")
    assert check.returncode == 0, check.stdout
    assert "SmolLM2-135M-Instruct (int4)" in check.stdout


@asynccontextmanager
async def discord_answering(
    monkeypatch: pytest.MonkeyPatch, status: int, body: dict[str, object]
) -> AsyncIterator[None]:
    """Serve a Discord that answers the log-in like this and then keeps everybody waiting."""

    async def user(_request: web.Request) -> web.Response:
        return web.json_response(body, status=status)

    async def wait(_request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    application = web.Application()
    application.router.add_get("/users/@me", user)
    application.router.add_get("/{rest:.*}", wait)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setattr(discord.http.Route, "BASE", f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        yield
    finally:
        await runner.cleanup()


async def connect(stop: asyncio.Event) -> list[str]:
    ready: list[str] = []
    client = discord.Client(intents=discord.Intents.none())
    await asyncio.wait_for(connection.connect(client, TOKEN, stop=stop, on_ready=ready.append), 20)
    assert client.is_closed()
    return ready


async def test_a_refused_token_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    async with discord_answering(monkeypatch, 401, {"message": "401: Unauthorized", "code": 0}):
        with pytest.raises(StartError, match="Discord refused DISCORD_TOKEN"):
            await connect(asyncio.Event())


async def test_an_unreachable_discord_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discord.http.Route, "BASE", "http://127.0.0.1:9")
    with pytest.raises(StartError, match="Discord cannot be reached"):
        await connect(asyncio.Event())


async def test_stopping_before_the_connection_stands_ends_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    user: dict[str, object] = {"id": "1", "username": "bot", "discriminator": "0", "avatar": None}
    async with discord_answering(monkeypatch, 200, user):
        stop = asyncio.Event()
        stop.set()
        assert await connect(stop) == []
