"""Whatever servers do, the text of an answer is given out once, whole and in order."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import (
    EngineUnavailableError,
    GenerationFailedError,
    NoRoomError,
    PromptTooLongError,
    UnsafePromptError,
)
from engine.remote.answer import MAX_FRUITLESS
from engine.remote.wire import RefusedError
from engine.text.text_files import TextFiles
from engine.types import Completion, FinishReason, Generation, Health, Prompt, SamplingParams
from tests.engine.remote.fake_servers import (
    ANSWER,
    CONTEXT,
    GREEDY,
    QUESTION,
    Fault,
    Remote,
    ending,
    event,
    text_files,
)
from tests.virtual_time import run

KINDS = ("cut", "reset", "error", "garbage", "long", "stall", "refuse", "429", "503", "500")


@pytest.fixture(scope="module", params=["chatml", "llama-2"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    return text_files(tmp_path_factory.mktemp("files"), request.param)


async def read(generation: Generation) -> tuple[str, Completion]:
    text = "".join([piece async for piece in generation])
    assert generation.completion is not None
    assert generation.completion.text == text
    return text, generation.completion


FAULTS = st.lists(
    st.builds(Fault, st.sampled_from(KINDS), st.integers(0, 5000), st.sampled_from((0.0, 3.0))), max_size=5
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    faults=st.lists(FAULTS, min_size=1, max_size=3), begun=st.sampled_from(("", "Well,")), session=st.text()
)
def test_the_text_is_what_an_answer_without_faults_gives(
    files: TextFiles,
    tmp_path_factory: pytest.TempPathFactory,
    faults: list[list[Fault]],
    begun: str,
    session: str,
) -> None:
    """For any faults of any servers at any byte."""
    remote = Remote(files, Path(), num_servers=len(faults), begun=begun)
    for server, of_one in zip(remote.wire.all, faults, strict=True):
        server.faults = list(of_one)

    async def ask() -> None:
        async with remote.open() as engine:
            generation = engine.generate(remote.prompt, GREEDY, session=session)
            given: list[str] = []
            try:
                given.extend([piece async for piece in generation])
            except GenerationFailedError:
                assert sum(len(of_one) for of_one in faults) >= MAX_FRUITLESS
                return
            assert "".join(given) == ANSWER
            completion = generation.completion
            assert completion is not None
            assert (completion.text, completion.finish_reason) == (ANSWER, FinishReason.STOP)
            assert completion.num_breaks <= sum(len(of_one) for of_one in faults)
            assert engine.load.num_requests == 0
        assert all(server.num_running == 0 for server in remote.wire.all)

    run(ask())


def test_an_answer_is_gone_on_with_at_another_server(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path)

    async def ask() -> None:
        async with remote.open() as engine:
            first = engine._replicas.choose(engine._hidden("a"), 100)
            assert first is not None
            dying = remote.wire.servers[first.address]
            generation = engine.generate(remote.prompt, dataclasses.replace(GREEDY, seed=7), session="a")
            pieces = [await anext(generation) for _ in range(5)]
            dying.is_up = False
            pieces += [piece async for piece in generation]
            assert "".join(pieces) == ANSWER
            assert generation.completion is not None
            assert generation.completion.num_breaks == 1
            assert [len(server.asked) for server in remote.wire.all] == [1, 1]
            again = next(server for server in remote.wire.all if server is not dying).asked[0][0]
            assert again["seed"] == 8
            assert again["max_tokens"] == 400 - (len(again["prompt"]) - len(remote.prompt.ids))
            # While it is away nobody is sent there, and when it is back its conversations are.
            assert (await read(engine.generate(remote.prompt, GREEDY, session="a")))[0] == ANSWER
            assert len(dying.asked) == 1
            dying.is_up = True
            await asyncio.sleep(10)
            await read(engine.generate(remote.prompt, GREEDY, session="a"))
            assert len(dying.asked) == 2

    run(ask())


def test_who_waits_is_told_the_place(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path, num_servers=1)
    (server,) = remote.wire.all
    places: list[int] = []

    async def ask() -> None:
        async with remote.open() as engine:
            server.is_up = False
            generation = engine.generate(remote.prompt, GREEDY, tell=places.append)
            await asyncio.sleep(100)
            assert places == [1]
            server.is_up = True
            assert (await read(generation))[0] == ANSWER
            assert places == [1, 2, 0]

    run(ask())


def test_servers_that_stay_away_are_not_waited_for_forever(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path)

    async def ask() -> None:
        async with remote.open() as engine:
            for server in remote.wire.all:
                server.is_up = False
            began_s = asyncio.get_running_loop().time()
            with pytest.raises(EngineUnavailableError):
                await read(engine.generate(remote.prompt, GREEDY))
            assert 600 <= asyncio.get_running_loop().time() - began_s < 620
            assert engine.health is Health.AWAY
            with pytest.raises(NoRoomError):
                engine.generate(remote.prompt, GREEDY)

    run(ask())


def test_an_answer_that_fails_everywhere_ends(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path)
    for server in remote.wire.all:
        server.faults = [Fault("error", 0)] * 50

    async def ask() -> None:
        async with remote.open() as engine:
            with pytest.raises(GenerationFailedError):
                await read(engine.generate(remote.prompt, GREEDY))
        assert remote.wire.num_asked == MAX_FRUITLESS

    run(ask())


def test_an_answer_that_only_waited_in_line_is_not_the_reason_that_servers_go(
    files: TextFiles, tmp_path: Path
) -> None:
    remote = Remote(files, tmp_path)
    in_line = Fault("cut", len(b": waiting 2\n\n"))
    for server in remote.wire.all:
        server.faults = [in_line] * (2 * MAX_FRUITLESS)

    async def ask() -> None:
        async with remote.open() as engine:
            assert (await read(engine.generate(remote.prompt, GREEDY)))[0] == ANSWER

    run(ask())


@pytest.mark.parametrize("fault", [Fault("429", seconds=7.0), Fault("503", seconds=7.0)])
def test_a_server_that_asks_for_time_gets_it(files: TextFiles, tmp_path: Path, fault: Fault) -> None:
    remote = Remote(files, tmp_path, num_servers=1)
    (server,) = remote.wire.all
    server.faults = [fault]

    async def ask() -> None:
        async with remote.open() as engine:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            generation = engine.generate(remote.prompt, GREEDY)
            await asyncio.sleep(6.5)
            assert len(server.asked) == 1
            assert (await read(generation))[0] == ANSWER
            assert loop.time() - began_s < 25

    run(ask())


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (RefusedError(400, "too long", "context_length_exceeded"), PromptTooLongError),
        (RefusedError(400, "tags", "unsafe_prompt"), UnsafePromptError),
        (RefusedError(400, "what?"), GenerationFailedError),
        (RefusedError(404, "where?"), EngineUnavailableError),
        (RefusedError(302, "elsewhere"), EngineUnavailableError),
    ],
)
def test_what_no_server_takes_is_an_error_with_a_sentence(
    files: TextFiles, tmp_path: Path, refusal: RefusedError, expected: type[Exception]
) -> None:
    remote = Remote(files, tmp_path)

    def refuse(*_: Any) -> Any:
        raise refusal

    async def ask() -> None:
        async with remote.open() as engine:
            remote.wire.stream = refuse  # type: ignore[assignment,method-assign]
            with pytest.raises(expected):
                await read(engine.generate(remote.prompt, GREEDY))

    run(ask())


def test_whoever_cancels_is_heard_at_once(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path, num_servers=1)
    (server,) = remote.wire.all

    async def ask() -> None:
        async with remote.open() as engine:
            unheard = engine.generate(remote.prompt, GREEDY)
            unheard.cancel()
            assert (await read(unheard))[1].finish_reason is FinishReason.CANCELLED
            assert server.asked == []
            generation = engine.generate(remote.prompt, GREEDY)
            first = await anext(generation)
            generation.cancel()
            rest = [piece async for piece in generation]
            assert generation.completion is not None
            assert generation.completion.finish_reason is FinishReason.CANCELLED
            assert generation.completion.text == "".join([first, *rest])
            assert ANSWER.startswith(generation.completion.text)
            assert (server.num_running, engine.load.num_requests) == (0, 0)
            generation.cancel()
            assert [piece async for piece in generation] == []

    run(ask())


def test_what_is_running_when_the_engine_closes_ends_with_an_error(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path)

    async def ask() -> None:
        async with remote.open() as engine:
            generation = engine.generate(remote.prompt, GREEDY)
            await anext(generation)
        with pytest.raises(GenerationFailedError):
            await read(generation)
        assert engine.health is Health.CLOSED
        with pytest.raises(EngineUnavailableError):
            engine.generate(remote.prompt, GREEDY)
        assert remote.wire.is_closed
        await engine.close()

    run(ask())


def test_the_limit_of_tokens_holds_over_all_servers(files: TextFiles, tmp_path: Path) -> None:
    """Also where it is reached just when a server fails."""
    remote = Remote(files, tmp_path)
    num_tokens = len(remote.model.text.output_ids(ANSWER[:3], is_continued=False))
    params = SamplingParams(temperature=0.0, max_new_tokens=num_tokens)
    for server in remote.wire.all:
        server.faults = [
            Fault(
                "cut",
                len(b": waiting 2\n\n")
                + len(event({"choices": [{"index": 0, "text": ANSWER[:3], "finish_reason": None}]})),
            )
        ]

    async def ask() -> None:
        async with remote.open() as engine:
            text, completion = await read(engine.generate(remote.prompt, params))
        assert (text, completion.finish_reason) == (ANSWER[:3], FinishReason.LENGTH)
        assert completion.usage.num_new_tokens == num_tokens
        assert remote.wire.num_asked == 1

    run(ask())


def test_a_server_that_never_ends_is_left(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path, answer="ab" * 10_000)

    async def ask() -> None:
        async with remote.open() as engine:
            params = SamplingParams(temperature=0.0, max_new_tokens=10)
            with pytest.raises(GenerationFailedError, match="more than it was asked for"):
                await read(engine.generate(remote.prompt, params))
        assert sum(server.num_gone for server in remote.wire.all) == 1

    run(ask())


def test_what_an_answer_took_comes_from_the_server(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path)

    async def ask() -> None:
        async with remote.open() as engine:
            _, completion = await read(engine.generate(remote.prompt, GREEDY))
        usage = completion.usage
        assert (usage.num_prompt_tokens, usage.num_cached_tokens) == (len(remote.prompt.ids), 5)
        assert (usage.num_computed_tokens, usage.num_new_tokens) == (4, 3)
        assert 0 < usage.time_to_first_token_s < usage.duration_s

    run(ask())


@pytest.mark.parametrize(
    ("reason", "expected"), [("stop_text", FinishReason.STOP_TEXT), ("length", FinishReason.LENGTH)]
)
def test_how_an_answer_ended_is_known(
    files: TextFiles, tmp_path: Path, reason: str, expected: FinishReason
) -> None:
    remote = Remote(files, tmp_path)
    remote.wire._answer = lambda _body: event({"choices": [{"text": "so"}]}) + ending(reason)  # type: ignore[assignment,method-assign]

    async def ask() -> None:
        async with remote.open() as engine:
            assert (await read(engine.generate(remote.prompt, GREEDY)))[1].finish_reason is expected

    run(ask())


def test_what_cannot_be_asked_is_refused_here(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path)

    async def ask() -> None:
        async with remote.open() as engine:
            for ids in ((), (5,) * CONTEXT):
                with pytest.raises(PromptTooLongError):
                    engine.generate(Prompt(ids), GREEDY)
            prompt = engine.fit_prompt(QUESTION, 1000)
            other = dataclasses.replace(prompt, fingerprint="0" * 64)
            with pytest.raises(EngineUnavailableError, match="changed"):
                engine.generate(other, GREEDY)
            assert (await read(engine.generate(prompt, GREEDY)))[0] == ANSWER
            running = [engine.generate(prompt, GREEDY) for _ in range(8)]
            with pytest.raises(NoRoomError):
                engine.generate(prompt, GREEDY)
            assert [(await read(generation))[0] for generation in running] == [ANSWER] * 8

    run(ask())


def test_every_parameter_reaches_the_server(files: TextFiles, tmp_path: Path) -> None:
    remote = Remote(files, tmp_path, num_servers=1)
    (server,) = remote.wire.all
    params = SamplingParams(0.1, 0.2, 3, 0.4, 1.5, 0.6, 0.7, 80, 9, ("stop",))

    async def ask() -> None:
        async with remote.open() as engine:
            await read(engine.generate(remote.prompt, params, session="secret name"))

    run(ask())
    body, headers = server.asked[0]
    sent = {name: body.get(name) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    assert list(sent.values()) == [0.1, 0.2, 3, 0.4, 1.5]
    assert [body[name] for name in ("frequency_penalty", "presence_penalty", "max_tokens")] == [0.6, 0.7, 80]
    assert (body["seed"], body["stop"], body["stream"]) == (9, ["stop"], True)
    assert set(headers) == {"x-request-id", "x-fingerprint", "x-session-id"}
    assert "secret" not in str(headers)
