"""Keys: how they are written, who gets in, and how much each may ask at once and in a minute."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from engine.serving.keys import ApiKey, KeyRing, is_private, parse_keys
from engine.serving.service import ServingSettings
from tests.engine.serving.served import CHAT, ENDLESS, Client, ServedScripts, question, served

SECRET, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"
HASH = hashlib.sha256(OTHER.encode()).hexdigest()
KEYS = parse_keys(f"bot:{SECRET} at_once=2, guest:sha256:{HASH} per_minute=3")
SETTINGS = ServingSettings(keys=KEYS, is_private=False)


def test_keys_are_read_with_their_limits_and_kept_as_hashes() -> None:
    digest = hashlib.sha256(SECRET.encode()).digest()
    assert (ApiKey("bot", digest, 0, 2), ApiKey("guest", bytes.fromhex(HASH), 3, 0)) == KEYS
    assert SECRET not in repr(KEYS)


@pytest.mark.parametrize(
    "written",
    [
        *(",", "bot", "bot:", f":{SECRET}", f"b t:{SECRET}", "bot:short", f"bot:{SECRET} fast"),
        *(f"bot:{SECRET} at_once=0", f"bot:{SECRET} at_once=-1", f"bot:{SECRET}, bot:{OTHER}"),
        *(f"a:{SECRET}, b:{SECRET}", f"a:{OTHER}, b:sha256:{HASH}", f"{'n' * 65}:{SECRET}"),
    ],
)
def test_what_is_wrong_with_keys_is_said_without_them(written: str) -> None:
    with pytest.raises(ValueError, match=r"must be|has") as caught:
        parse_keys(written)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False)),  # noqa: S104
    ],
)
def test_which_addresses_are_of_this_machine_only(host: str, expected: bool) -> None:
    assert is_private(host) is expected


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", f"Basic {SECRET}", "Bearer wrong", f"Bearer {SECRET}x", "Bearer ü"]
)
def test_nobody_gets_in_without_a_key(given: str) -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        for path in ("/v1/models", "/v1/models/scripted", "/engine/model", "/engine/load", "/metrics"):
            assert (await client.get(path, authorization=given)).status == 401
        assert (await client.get("/engine/files/text.json", authorization=given)).status == 401
        for path in (CHAT, "/v1/completions", "/engine/warm", "/engine/forget"):
            answer = await client.post(path, question(), authorization=given)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.error["type"] == "authentication_error"
        assert (await client.get("/health", authorization=given)).status == 200
        assert (engine.generations, engine.num_drops) == ([], 0)

    served(scene, settings=SETTINGS)


def test_each_key_gets_in_and_is_named_in_the_figures() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        for secret in (SECRET, OTHER):
            assert (await client.post(CHAT, question(), authorization=f"Bearer {secret}")).status == 200
        figures = (await client.get("/metrics", authorization=f"bearer {SECRET}")).body.decode()
        for name in ("bot", "guest"):
            assert f'llamacord_engine_tokens_total{{key="{name}",kind="answer"}} 3.0' in figures
        assert SECRET not in figures
        assert HASH not in figures

    served(scene, settings=SETTINGS)


def test_a_key_may_have_so_many_requests_at_once() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        calls = [client.begin_chat() for _ in range(3)]
        await asyncio.sleep(1)
        assert calls[2].answer.status == 429
        assert calls[2].answer.headers["retry-after"] == "1"
        assert "2 requests running or waiting at once" in calls[2].answer.error["message"]
        calls[0].leave()
        await calls[0].task
        again = client.begin_chat()
        await asyncio.sleep(1)
        assert not again.task.done()
        for call in (calls[1], again):
            call.leave()
            await call.task

    served(scene, ServedScripts([ENDLESS]), SETTINGS, authorization=f"Bearer {SECRET}")


def test_a_key_may_send_so_many_requests_a_minute() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        assert [(await client.chat()).status for _ in range(3)] == [200] * 3
        refused = await client.chat()
        assert (refused.status, refused.headers["retry-after"]) == (429, "20")
        assert refused.error["type"] == "rate_limit_error"
        await asyncio.sleep(20)
        assert (await client.chat()).status == 200
        assert (await client.chat()).status == 429
        assert (await client.post(CHAT, question(), authorization=f"Bearer {SECRET}")).status == 200

    served(scene, settings=SETTINGS, authorization=f"Bearer {OTHER}")


def test_what_is_no_answer_has_the_limits_of_its_key_once_more() -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        calls = [client.begin("/engine/warm", {"prompt": [1]}) for _ in range(3)]
        await asyncio.sleep(1.5)
        assert [call.answer.status for call in calls] == [200, 200, 429]
        assert (await client.chat()).status == 200
        guest = f"Bearer {OTHER}"
        forgotten = [await client.post("/engine/forget", {}, authorization=guest) for _ in range(4)]
        assert [answer.status for answer in forgotten] == [204, 204, 204, 429]
        assert engine.num_drops == 3
        assert (await client.post(CHAT, question(), authorization=guest)).status == 200
        for call in calls[:2]:
            call.leave()
            await call.task

    served(scene, ServedScripts(warm_s=100.0), SETTINGS, authorization=f"Bearer {SECRET}")


def test_a_key_may_have_any_letters() -> None:
    ring = KeyRing(parse_keys("bot:schlüssel-für-alle"))
    as_it_comes = "Bearer schlüssel-für-alle".encode().decode("latin-1")
    assert ring.find(as_it_comes).name == "bot"
