"""`check` asks each server, and says in a sentence what is wrong with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot import server_check
from bot.config import load_settings
from bot.model_check import Finding
from engine.remote.wire import MAX_REPLY_BYTES, RefusedError, WireError
from tests.engine.remote.fake_servers import described, report, text_files


class FakeWire:
    """Servers by address: what each says, as a function of the path."""

    servers: dict[str, Callable[[str], bytes]]

    def __init__(self, *_: object) -> None: ...

    async def get(self, address: str, path: str, *, max_bytes: int = MAX_REPLY_BYTES) -> bytes:
        return self.servers[address](path)

    async def close(self) -> None: ...


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[str], bytes]]:
    files = text_files(tmp_path)
    monkeypatch.setattr(server_check, "HttpWire", FakeWire)

    def saying(chat_format: str = "chatml", instances: str = "i", **load: Any) -> Callable[[str], bytes]:
        has = files if chat_format == "chatml" else text_files(tmp_path, chat_format)
        looks = iter(instances * 6)

        def talk(path: str) -> bytes:
            if path == "/engine/model":
                return json.dumps(described(has)).encode()
            if path == "/engine/load":
                return json.dumps(report(fingerprint=has.fingerprint, instance=next(looks), **load)).encode()
            return has.read(path.rpartition("/")[2])

        return talk

    return saying


def away(_path: str) -> bytes:
    raise WireError("Connection refused")


def strange(_path: str) -> bytes:
    raise RefusedError(401, "Wrong key.")


def check(servers: dict[str, Callable[[str], bytes]], **values: str) -> list[Finding]:
    FakeWire.servers = servers
    chosen = {"ENGINE": ",".join(servers), "LLAMA_CACHE": "/nowhere", **values}
    return list(server_check.check_engine(load_settings(chosen, Path("/nowhere/.env"))))


def test_servers_that_answer_are_named_with_model_and_fingerprint(say: Any) -> None:
    findings = check({"http://a": say(), "http://b": say()})
    assert [finding.is_good for finding in findings] == [True, True]
    assert all("tiny (fp32, cpu)" in finding.sentence and "ready" in finding.sentence for finding in findings)
    assert len({finding.sentence.partition("fingerprint ")[2][:12] for finding in findings}) == 1


@pytest.mark.parametrize(
    ("server", "words"), [(away, "cannot be reached: Connection refused"), (strange, "Check ENGINE_KEY")]
)
def test_what_is_wrong_with_one_is_said_beside_the_others(
    say: Any, server: Callable[[str], bytes], words: str
) -> None:
    good, bad = check({"http://a": say(), "http://b": server})
    assert good.is_good
    assert not bad.is_good
    assert words in bad.sentence


def test_servers_with_different_models_are_a_problem(say: Any) -> None:
    findings = check({"http://a": say(), "http://b": say("llama-2")})
    assert not any(finding.is_good for finding in findings)
    assert all("same model" in finding.sentence for finding in findings)


def test_a_server_that_is_about_to_end_is_a_problem(say: Any) -> None:
    (finding,) = check({"http://a": say(draining=True)})
    assert not finding.is_good
    assert "closing" in finding.sentence


def test_a_balancer_needs_the_addresses_behind_it(say: Any) -> None:
    finding, advice = check({"http://a": say(instances="ab")})
    assert finding.is_good
    assert not advice.is_good
    assert "ENGINE_REPLICAS" in advice.sentence
    servers = {"http://a": say(instances="ab"), "http://b": say()}
    findings = check(servers, ENGINE="http://a", ENGINE_REPLICAS="http://b")
    assert [(one.subject, one.is_good) for one in findings] == [("Engine", True), ("Replica", True)]


def test_a_key_that_crosses_a_network_in_the_clear_is_mentioned(say: Any) -> None:
    quiet = check({"http://127.0.0.1:1": say(), "https://b": say()}, ENGINE_KEY="k")
    assert not any("unencrypted" in finding.sentence for finding in quiet)
    assert "unencrypted" in check({"http://b": say()}, ENGINE_KEY="k")[-1].sentence


def test_other_models_are_looked_at_too(say: Any) -> None:
    servers = {"http://a": say(), "http://b": away}
    findings = check(servers, ENGINE="http://a", MODELS="big=http://b")
    assert [(one.subject, one.is_good) for one in findings] == [("Engine", True), ("Model big", False)]
