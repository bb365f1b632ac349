"""Who is answered when: keys take turns, in a key its sessions do; who waits, and what closing means."""

from __future__ import annotations

import asyncio

import pytest

from engine.serving.keys import parse_keys
from engine.serving.service import ServingSettings
from engine.types import Health
from tests.engine.serving.served import CHAT, ENDLESS, Call, Client, ServedScripts, question, served
from tests.fakes import Script

SECRETS = {"many": "sk-0123456789abcdef", "one": "sk-fedcba9876543210"}
KEYS = parse_keys(", ".join(f"{name}:{secret}" for name, secret in SECRETS.items()))
SLOW = Script(delay_s=1.0)
"""Takes four seconds."""


async def order_of(client: Client, asked: list[tuple[str, str, str]]) -> list[str]:
    """Ask for answers, of a key, a session and a text; return the texts as they were answered."""
    blocker = client.begin_chat("blocker", session="blocker")
    await asyncio.sleep(0.001)
    calls: list[Call] = []
    for key, session, text in asked:
        headers = {"x_session_id": session, "authorization": f"Bearer {SECRETS[key]}"}
        calls.append(client.begin("/v1/chat/completions", question(text), **headers))
        await asyncio.sleep(0.001)
    await asyncio.gather(blocker.task, *(call.task for call in calls))
    engine = client.app.service.engine
    assert isinstance(engine, ServedScripts)
    return [dialog[-1].content for dialog in engine.dialogs][1:]


def test_a_key_with_many_requests_does_not_keep_another_one_waiting() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        asked = [("many", f"s{number}", f"m{number}") for number in range(5)]
        found = await order_of(client, [*asked, ("one", "s", "o1"), ("one", "s", "o2")])
        assert found.index("o1") <= 1
        assert found.index("o2") <= 3

    served(
        scene,
        ServedScripts([SLOW], max_requests=1),
        ServingSettings(keys=KEYS),
        authorization=f"Bearer {SECRETS['many']}",
    )


@pytest.mark.parametrize("names_itself", ["header", "user"])
def test_in_a_key_its_sessions_take_turns(names_itself: str) -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        calls = [client.begin_chat("blocker")]
        await asyncio.sleep(0.001)
        for session, text in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")]:
            if names_itself == "header":
                calls.append(client.begin_chat(text, session=session))
            else:
                calls.append(client.begin_chat(text, user=session))
            await asyncio.sleep(0.001)
        await asyncio.gather(*(call.task for call in calls))
        assert [dialog[-1].content for dialog in engine.dialogs][1:3] == ["a1", "b1"]

    served(scene, ServedScripts([SLOW], max_requests=1))


def test_no_session_is_taken_for_a_key_or_for_another_keys_session() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        remembered = client.app.service.room._order._last_turn
        mine = {"authorization": f"Bearer {SECRETS['many']}"}
        theirs = {"authorization": f"Bearer {SECRETS['one']}"}
        await client.post(CHAT, question(), x_session_id="one", **mine)
        assert len(remembered) == 2
        assert "one" not in remembered
        await client.post(CHAT, question(), x_session_id="one", **theirs)
        assert len(remembered) == 4

    served(scene, settings=ServingSettings(keys=KEYS))


def test_a_name_of_any_length_takes_no_memory() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        for number in range(2):
            assert (await client.chat(user=f"{number}" * 100_000)).status == 200
        remembered = client.app.service.room._order._last_turn
        assert len(remembered) == 3
        assert len(repr(remembered)) < 1000

    served(scene)


def test_too_many_who_wait_are_told_when_to_come_again() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        calls = [client.begin_chat(stream=True) for _ in range(3)]
        await asyncio.sleep(0.001)
        refused = await client.chat(stream=True)
        assert (refused.status, refused.error["code"]) == (429, "too_many_waiting")
        before = int(refused.headers["retry-after"])
        assert before >= 5
        await asyncio.gather(*(call.task for call in calls))
        calls = [client.begin_chat() for _ in range(3)]
        await asyncio.sleep(0.001)
        later = int((await client.chat()).headers["retry-after"])
        assert 5 <= later < before, "it learnt that an answer takes four seconds"
        await asyncio.gather(*(call.task for call in calls))

    served(scene, ServedScripts([SLOW], max_requests=1), ServingSettings(max_waiting=2))


def test_closing_lets_answers_end_and_turns_the_others_away() -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        running = [client.begin_chat(stream=True), client.begin_chat()]
        await asyncio.sleep(0.001)
        waiting = [client.begin_chat(), client.begin_chat(stream=True), client.begin_chat(stream=True)]
        await asyncio.sleep(1.5)
        late = client.begin_chat()  # its place was not told yet
        await asyncio.sleep(0.001)
        draining = asyncio.ensure_future(client.app.service.drain())
        await asyncio.sleep(0.001)
        for call in (waiting[0], late):
            assert (call.answer.status, call.answer.error["code"]) == (503, "draining")
            assert call.answer.headers["retry-after"] == "5"
        for call in waiting[1:]:
            assert call.answer.events[-1]["error"]["code"] == "draining"
            assert not call.answer.is_done
        assert (await client.get("/health")).json == {"status": "draining"}
        assert (await client.get("/health")).status == 503
        assert (await client.get("/engine/load")).json["draining"]
        assert (await client.chat()).error["code"] == "draining"
        assert await draining
        answers = [await call.done() for call in running]
        assert answers[0].is_done
        assert answers[1].json["choices"][0]["message"]["content"] == "Hello there."
        assert len(engine.generations) == 2

    served(scene, ServedScripts([SLOW], max_requests=2))


def test_closing_takes_no_longer_than_the_grace() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        call = client.begin_chat(stream=True)
        await asyncio.sleep(0.001)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert not await client.app.service.drain()
        assert loop.time() - began_s == pytest.approx(3.0)
        call.leave()
        await call.task
        assert await client.app.service.drain()

    served(scene, ServedScripts([ENDLESS]), ServingSettings(grace_s=3.0))


@pytest.mark.parametrize("health", [Health.RECOVERING, Health.UNHEALTHY, Health.CLOSED])
def test_an_engine_that_cannot_answer_says_so(health: Health) -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        engine.health = health
        answer = await client.chat(stream=True)
        assert (answer.status, answer.error["code"]) == (503, str(health))
        assert int(answer.headers["retry-after"]) > 0
        asked = await client.get("/health")
        assert (asked.status, asked.json) == (503, {"status": str(health)})
        assert f"llamacord_engine_is_{health} 1.0" in (await client.get("/metrics")).body.decode()

    served(scene)
