"""Who is asked, who is told to forget, and what is done about servers that are away or have another model."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineUnavailableError, GenerationFailedError, ModelError, ModelFormatError
from engine.remote.description import Cabinet, Description, _write
from engine.remote.remote_engine import RemoteEngine, Servers
from engine.remote.wire import MAX_REPLY_BYTES, RefusedError
from engine.text.text_files import TextFiles
from engine.types import Generation, Health
from tests.engine.remote.fake_servers import (
    ANSWER,
    GREEDY,
    PATIENCE,
    QUESTION,
    FakeServers,
    Fault,
    Remote,
    described,
    model_of,
    report,
    text_files,
)
from tests.engine.remote.test_remote_answers import read
from tests.virtual_time import run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    return text_files(tmp_path_factory.mktemp("files"))


def test_a_conversation_stays_where_its_kv_is(files: TextFiles, tmp_path: Path) -> None:
    """One that goes away moves only its own conversations, and gets them back."""
    remote = Remote(files, tmp_path, num_servers=4)
    sessions = [f"session {number}" for number in range(200)]

    async def ask() -> None:
        async with remote.open() as engine:
            replicas = engine._replicas

            def homes() -> dict[str, str]:
                chosen = {session: replicas.choose(session, 100) for session in sessions}
                return {session: replica.address for session, replica in chosen.items() if replica}

            before = homes()
            assert min(Counter(before.values()).values()) > 25
            assert homes() == before
            remote.wire.servers["http://server1"].is_up = False
            await asyncio.sleep(10)
            without = homes()
            moved = {session for session in sessions if without[session] != before[session]}
            assert moved == {session for session in sessions if before[session] == "http://server1"}
            remote.wire.servers["http://server1"].is_up = True
            await asyncio.sleep(10)
            assert homes() == before
            warming = engine.warm(engine.fit_prompt(QUESTION, 500), session="a")
            assert await warming
            home = replicas.choose(engine._hidden("a"), 100)
            assert home is not None
            assert len(remote.wire.servers[home.address].warmed) == 1

    run(ask())


def test_who_is_full_is_passed_over(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path)
    full = report(load={"num_requests": 4})

    async def ask() -> None:
        async with remote.open() as engine:
            first = engine._replicas.choose("a", 100)
            assert first is not None
            remote.wire.servers[first.address].report = full
            await asyncio.sleep(10)
            other = engine._replicas.choose("a", 100)
            assert other is not None
            assert other is not first
            assert engine._replicas.choose("", 100) is other
            remote.wire.servers[other.address].report = full
            await asyncio.sleep(10)
            assert engine._replicas.choose("a", 100) is first
            # What others do there keeps nobody here waiting: at the server there is a line.
            assert engine.load.has_room(100)
            assert (await read(engine.generate(remote.prompt, GREEDY)))[0] == ANSWER

    run(ask())


def test_nobody_begins_at_a_server_that_is_about_to_end(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path)

    async def ask() -> None:
        async with remote.open() as engine:
            closing, other = remote.wire.all
            closing.report = report(draining=True)
            await asyncio.sleep(10)
            for number in range(20):
                await read(engine.generate(remote.prompt, GREEDY, session=str(number)))
            assert (len(closing.asked), len(other.asked)) == (0, 20)
            other.report = report(health="recovering")
            await asyncio.sleep(10)
            assert [engine.health] == [Health.RECOVERING]
            other.report = report(health="unhealthy")
            closing.report = report(health="unhealthy")
            await asyncio.sleep(10)
            assert [engine.health] == [Health.UNHEALTHY]
            with pytest.raises(EngineUnavailableError):
                engine.generate(remote.prompt, GREEDY)

    run(ask())


def test_every_server_forgets_also_one_that_was_away(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path, num_servers=3)

    async def ask() -> None:
        async with remote.open() as engine:
            here, away, at_last = remote.wire.all
            away.is_up = at_last.is_up = False
            engine.count_tokens("a secret")
            engine.drop_idle_cache()
            await asyncio.sleep(1)
            assert (here.num_forgotten, away.num_forgotten) == (1, 0)
            await asyncio.sleep(300)
            away.is_up = True
            await asyncio.sleep(20)
            assert (here.num_forgotten, away.num_forgotten) == (1, 1)
            engine.drop_idle_cache()
            await asyncio.sleep(1)
            assert (here.num_forgotten, away.num_forgotten) == (2, 2)
            assert not engine._model.text.tokenizer._known
            at_last.is_up = True
        assert at_last.num_forgotten == 1

    run(ask())


def test_behind_a_balancer_the_servers_themselves_are_told(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path, num_servers=3)
    balancer, *servers = remote.wire.servers

    async def ask() -> None:
        options = Servers((balancer,), tmp_path, replicas=tuple(servers), patience=PATIENCE)
        async with RemoteEngine(options, remote.wire, remote.model, Cabinet(tmp_path)) as engine:
            engine.drop_idle_cache()
            await asyncio.sleep(1)
            assert [server.num_forgotten for server in remote.wire.all] == [0, 1, 1]
            # Every question about the load is answered by another one of those behind it.
            for instance in ("a", "b", "a", "b"):
                remote.wire.servers[balancer].report = report(instance=instance)
                await asyncio.sleep(4)
            assert engine.load.max_requests == 8
            await asyncio.sleep(30)
            assert engine.load.max_requests == 4

    run(ask())


async def rest_of(generation: Generation) -> str:
    """Read an answer to its end; return all of it."""
    async for _ in generation:
        pass
    assert generation.completion is not None
    return generation.completion.text


def test_a_stream_that_breaks_behind_a_balancer_holds_nobody_else_up(
    files: TextFiles, tmp_path: Path
) -> None:
    remote = Remote(files, tmp_path, num_servers=1)
    (balancer,) = remote.wire.all

    async def first_s(engine: RemoteEngine, session: str) -> float:
        """Return how long the first piece of an answer takes."""
        generation = engine.generate(remote.prompt, GREEDY, session=session)
        began_s = asyncio.get_running_loop().time()
        await anext(generation)
        took_s = asyncio.get_running_loop().time() - began_s
        await rest_of(generation)
        return took_s

    async def ask() -> None:
        async with remote.open() as engine:
            balancer.report = report(instance="another")
            await asyncio.sleep(6)
            usual_s = await first_s(engine, "other")
            balancer.faults = [Fault("reset", at=400)]
            breaking = engine.generate(remote.prompt, GREEDY, session="broken")
            await anext(breaking)
            while balancer.num_gone == 0:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
            assert engine.health is Health.READY
            assert engine.load.max_requests == 8
            assert await first_s(engine, "another") == pytest.approx(usual_s)
            assert await rest_of(breaking) == ANSWER

    run(ask())


def test_a_balancer_that_is_gone_is_away(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path, num_servers=1)
    (balancer,) = remote.wire.all

    async def ask() -> None:
        async with remote.open() as engine:
            balancer.report = report(instance="another")
            await asyncio.sleep(6)
            generation = engine.generate(remote.prompt, GREEDY)
            await anext(generation)
            balancer.is_up = False
            await asyncio.sleep(5)
            assert engine.health is Health.AWAY
            balancer.is_up = True
            assert await rest_of(generation) == ANSWER

    run(ask())


def test_a_key_that_is_not_known_is_said(
    files: TextFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Remote(files, tmp_path, num_servers=1)

    async def ask() -> None:
        async with remote.open() as engine:
            remote.wire.all[0].key_is_known = False
            await asyncio.sleep(10)
            assert engine.health is Health.UNHEALTHY

    run(ask())
    assert "ENGINE_KEY" in caplog.text


class Described(FakeServers):
    """Servers that also give their files."""

    files: TextFiles
    damage: Any = None

    async def get(self, address: str, path: str, *, max_bytes: int = MAX_REPLY_BYTES) -> bytes:
        if path == "/engine/load":
            return await super().get(address, path)
        self._reach(address)
        if path == "/engine/model":
            told = described(self.files)
            return json.dumps(told if self.damage is None else self.damage(told)).encode()
        content = self.files.read(path.rpartition("/")[2])
        self.gets[path] += 1
        assert len(content) <= max_bytes
        return content


def describing(files: TextFiles, num_servers: int = 1) -> Described:
    model = model_of(files)
    wire = Described(model, model.text.fit_prompt(QUESTION, 500), num_servers=num_servers)
    wire.files = files
    return wire


def servers_of(wire: Described, cache: Path) -> Servers:
    return Servers(tuple(wire.servers), cache, patience=PATIENCE)


def test_what_is_needed_is_fetched_once(files: TextFiles, tmp_path: Path) -> None:
    wire = describing(files)

    async def ask() -> None:
        for _ in range(2):
            async with await RemoteEngine.open(servers_of(wire, tmp_path), wire) as engine:
                assert engine.info.name == "tiny"
                assert engine.info.sampling == {"temperature": 0.5}
                assert engine.load.has_room(100)
                prompt = engine.fit_prompt(QUESTION, 500)
                assert (await read(engine.generate(prompt, GREEDY)))[0] == ANSWER
        assert {path: count for path, count in wire.gets.items() if "/files/" in path} == {
            f"/engine/files/{name}": 1 for name in files.entries
        }
        # With what was fetched a bot starts also where no server is there yet.
        wire.all[0].is_up = False
        async with await RemoteEngine.open(servers_of(wire, tmp_path), wire) as engine:
            assert (engine.info.name, engine.health) == ("tiny", Health.AWAY)
            assert not engine.load.has_room(1)
            wire.all[0].is_up = True
            await asyncio.sleep(5)
            assert engine.health is Health.READY

    run(ask())


def test_a_server_that_is_not_there_ends_the_start_with_a_sentence(files: TextFiles, tmp_path: Path) -> None:
    wire = describing(files)

    async def ask() -> None:
        wire.all[0].is_up = False
        with pytest.raises(ModelError, match="Is it running"):
            await RemoteEngine.open(servers_of(wire, tmp_path), wire)
        wire.all[0].is_up, wire.all[0].key_is_known = True, False
        with pytest.raises(ModelError, match="ENGINE_KEY"):
            await RemoteEngine.open(servers_of(wire, tmp_path), wire)

    run(ask())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda told: told | {"fingerprint": "a" * 64}, "of its fingerprint|cannot be read"),
        (lambda told: told | {"fingerprint": "../../etc"}, "fingerprint"),
        (lambda told: told | {"files": []}, "files"),
        (lambda told: told | {"files": [told["files"][0] | {"name": "../x"}]}, "names"),
        (lambda told: told | {"files": [told["files"][0] | {"size": 2**40}]}, "too large"),
        (
            lambda told: told | {"files": [told["files"][0] | {"sha256": "b" * 64}, *told["files"][1:]]},
            "checksum",
        ),
        (lambda told: told | {"max_tokens": -5}, "tokens"),
        (lambda told: told | {"info": told["info"] | {"sampling": {"temperature": 99}}}, "temperature"),
        (lambda told: told | {"info": told["info"] | {"sampling": {"colour": 1}}}, "colour"),
        (lambda told: told | {"info": told["info"] | {"sampling": {"top_p": 10**400}}}, "top_p must not be"),
        (lambda _told: {"object": "list"}, "lacks"),
        (lambda told: [told], "talk"),
        (lambda told: told | {"info": 7}, "server of this kind"),
    ],
)
def test_a_server_that_talks_nonsense_is_refused(
    files: TextFiles, tmp_path: Path, damage: Any, words: str
) -> None:
    wire = describing(files)
    wire.damage = damage

    async def ask() -> None:
        with pytest.raises(ModelFormatError, match=words):
            await RemoteEngine.open(servers_of(wire, tmp_path), wire)

    run(ask())


def test_files_that_were_damaged_here_are_fetched_again(files: TextFiles, tmp_path: Path) -> None:
    wire = describing(files)

    async def ask() -> None:
        for _ in range(2):
            async with await RemoteEngine.open(servers_of(wire, tmp_path), wire) as engine:
                assert (await read(engine.generate(engine.fit_prompt(QUESTION, 500), GREEDY)))[0] == ANSWER
            (tmp_path / files.fingerprint / "tokenizer.json").write_text("{}")

    run(ask())


def test_a_server_with_another_model_is_refused(
    files: TextFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Remote(files, tmp_path)

    async def ask() -> None:
        async with remote.open() as engine:
            remote.wire.all[0].report = report(fingerprint="c" * 64)
            await asyncio.sleep(10)
            for number in range(10):
                assert (await read(engine.generate(remote.prompt, GREEDY, session=str(number))))[0] == ANSWER
            assert [len(server.asked) for server in remote.wire.all] == [0, 10]
            assert engine.info.name == "tiny"

    run(ask())
    assert "another model" in caplog.text


def test_where_all_have_another_model_it_is_fetched(files: TextFiles, tmp_path: Path) -> None:
    """Answers of the old one end, none goes on with the new one, and prompts of the old one are refused."""
    wire = describing(files, 2)
    new_files = text_files(tmp_path / "new", "llama-2")
    changes: list[str] = []

    async def ask() -> None:
        async with await RemoteEngine.open(servers_of(wire, tmp_path), wire) as engine:
            engine.on_other_model = lambda: changes.append(engine.fingerprint)
            old = engine.fit_prompt(QUESTION, 500)
            generation = engine.generate(old, GREEDY)
            await anext(generation)
            wire.files, wire.model = new_files, model_of(new_files)
            wire.all[0].is_up = False
            await asyncio.sleep(3)
            with pytest.raises(GenerationFailedError):
                await read(generation)
            assert changes == [new_files.fingerprint]
            assert engine.info.chat_format == "llama-2"
            with pytest.raises(EngineUnavailableError, match="changed"):
                engine.generate(old, GREEDY)
            wire.prompt = engine.fit_prompt(QUESTION, 500)
            assert (await read(engine.generate(wire.prompt, GREEDY)))[0] == ANSWER
            wire.all[0].is_up = True
            await asyncio.sleep(10)
            assert engine.load.max_requests == 8

    run(ask())


def test_one_that_comes_to_have_another_model_between_two_looks_gets_no_tokens_of_the_old_one(
    files: TextFiles, tmp_path: Path
) -> None:
    remote = Remote(files, tmp_path)

    async def ask() -> None:
        async with remote.open() as engine:
            first = engine._replicas.choose(engine._hidden("a"), 100)
            assert first is not None
            server = remote.wire.servers[first.address]
            stream = remote.wire.stream

            def mismatch(address: str, path: str, body: Any, headers: Any) -> Any:
                assert headers["x-fingerprint"] == files.fingerprint
                if address == first.address:
                    raise RefusedError(409, "another", "fingerprint_mismatch")
                return stream(address, path, body, headers)

            remote.wire.stream = mismatch  # type: ignore[method-assign]
            assert (await read(engine.generate(remote.prompt, GREEDY, session="a")))[0] == ANSWER
            assert server.asked == []

    run(ask())


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b'{"health": "fine"}', b"\xff", b"[" * 100_000, json.dumps(report()).encode()),
        json.dumps(report(load={"num_requests": 10**400}, fingerprint="a")).encode(),
        json.dumps(report(load={"max_requests": -4}, fingerprint="a")).encode(),
    ],
)
def test_a_server_whose_load_is_nonsense_is_away(files: TextFiles, tmp_path: Path, body: bytes) -> None:
    remote = Remote(files, tmp_path, num_servers=1)

    async def nonsense(*_: Any, **__: Any) -> bytes:
        return body

    async def ask() -> None:
        async with remote.open() as engine:
            remote.wire.get = nonsense  # type: ignore[method-assign]
            await asyncio.sleep(10)
            assert engine.health is Health.AWAY

    run(ask())


def test_a_warming_that_comes_to_nothing_keeps_nothing(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path, num_servers=1)
    (server,) = remote.wire.all

    async def ask() -> None:
        async with remote.open() as engine:
            given_up = engine.warm(remote.prompt)
            given_up.cancel()
            assert not await given_up
            waiting = engine.warm(remote.prompt)
            await asyncio.sleep(0.05)
            waiting.cancel()
            assert not await waiting
            server.is_up = False
            assert not await engine.warm(remote.prompt)
            assert not await engine.warm(remote.prompt)
            server.is_up = True
            await asyncio.sleep(5)
            assert await engine.warm(remote.prompt)

    run(ask())


def test_what_is_polled_how_often(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path, num_servers=1, piece_s=5.0)
    (address,) = remote.wire.servers

    async def ask() -> None:
        async with remote.open() as engine:
            remote.wire.gets.clear()
            await asyncio.sleep(60)
            assert 10 <= remote.wire.gets[address] <= 14
            remote.wire.gets.clear()
            generation = engine.generate(remote.prompt, GREEDY)
            await asyncio.sleep(60)
            assert 50 <= remote.wire.gets[address] <= 62
            generation.cancel()

    run(ask())


def test_descriptions_say_nothing_that_a_log_cannot_bear() -> None:
    error = RefusedError.of(500, json.dumps({"error": {"message": "a\n\x1b[31mb" + "c" * 500}}).encode())
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) <= 200
    for body in (b"", b"<html>", b'{"error": "text"}', b'{"error": {"message": 5}}'):
        assert "500" in str(RefusedError.of(500, body))
    assert RefusedError.of(429, b"", "7").retry_after_s == 7
    assert RefusedError.of(429, b"", "99999").retry_after_s == 60
    assert RefusedError.of(429, b"", "Wed, 21 Oct 2026 07:28:00 GMT").retry_after_s == 0
    with pytest.raises(ModelFormatError):
        Description.read(b"nonsense")


def test_a_chat_format_of_our_own_makes_other_prompts_of_the_same_model(
    files: TextFiles, tmp_path: Path
) -> None:
    """As a moderation model needs it, whose own template is not used."""
    wire = describing(files)

    async def ask() -> None:
        servers = Servers(tuple(wire.servers), tmp_path, patience=PATIENCE, chat_format="llama-2")
        async with await RemoteEngine.open(servers, wire) as engine:
            assert engine.info.chat_format == "llama-2"
            assert engine.fingerprint == files.fingerprint
            wire.prompt = engine.fit_prompt(QUESTION, 500)
            assert "[INST]" in b"".join(engine._model.text.token_bytes[t] for t in wire.prompt.ids).decode()
            assert (await read(engine.generate(wire.prompt, GREEDY)))[0] == ANSWER

    run(ask())


def test_two_that_keep_the_same_file_at_once_are_not_in_each_others_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, num_writing = Path.write_bytes, 0

    def write_and_be_overtaken(path: Path, content: bytes) -> int:
        nonlocal num_writing
        num_writing += 1
        size = write(path, content)
        if num_writing == 1:
            _write(tmp_path / "a", b"theirs")
        return size

    monkeypatch.setattr(Path, "write_bytes", write_and_be_overtaken)
    _write(tmp_path / "a", b"ours")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("a", b"ours")]
