"""Settings read anew: live ones take effect, others are named, and a bad file changes nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest

from bot.config import LIVE, Reloader, Settings, load_settings
from bot.config_keys import KEYS


class Place:
    """A settings file, and what was applied of it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.applied: list[Settings] = []
        self.reloader = Reloader(self.read(), self.read, self.applied.append)

    def read(self) -> Settings:
        return load_settings({}, self.file)

    def reload(self, *lines: str) -> None:
        self.file.write_text("\n".join(lines), encoding="utf-8")
        self.reloader.reload()


@pytest.fixture
def place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Place:
    caplog.set_level(logging.INFO)
    return Place(tmp_path / ".env")


def test_every_live_key_exists() -> None:
    assert {key.name for key in KEYS} >= LIVE


def test_live_settings_take_effect(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.reload("TEMPERATURE=0.1", "RETENTION_DAYS=7", "LOG_LEVEL=debug")
    (applied,) = place.applied
    assert (applied.chat.sampling.temperature, applied.keeping.retention_days) == (0.1, 7)
    assert applied.log_level == logging.DEBUG
    assert "changed: TEMPERATURE, RETENTION_DAYS, LOG_LEVEL" in caplog.text


def test_what_needs_a_restart_is_named_and_stays(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        place.reload("THREADS=3", "TOP_K=5")
        assert "need a restart: THREADS" in caplog.text
    (applied,) = place.applied
    assert (applied.threads, applied.chat.sampling.top_k) == (0, 5)


def test_a_bad_file_keeps_the_old_settings_and_says_why(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.reload("TEMPERATURE=hot", "TOP_K=5")
    assert place.applied == []
    assert "stay as they were" in caplog.text
    assert "TEMPERATURE=hot" in caplog.text
    place.reload("TOP_K=5")
    assert place.applied[0].chat.sampling.top_k == 5


def test_a_file_that_did_not_change_changes_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.reload()
    assert place.applied == []
    assert "changed: none" in caplog.text


def test_a_token_that_changed_is_not_shown(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    token = "MTIzNDU2Nzg5MDEyMzQ1Njc4.secret.secret"
    place.reload(f"DISCORD_TOKEN={token}")
    assert "need a restart: DISCORD_TOKEN" in caplog.text
    assert "secret" not in caplog.text


async def test_the_signal_reloads(place: Place) -> None:
    place.reloader.listen()
    place.file.write_text("TOP_K=5", encoding="utf-8")
    os.kill(os.getpid(), signal.SIGHUP)
    async with asyncio.timeout(5):
        while not place.applied:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
    assert place.applied[0].chat.sampling.top_k == 5
