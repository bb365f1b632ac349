"""Drafts by a small model, from the engine's face on, over real models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from engine.cpu.drafting import Drafter
from engine.cpu.model import CpuModel
from engine.engine import Engine, EngineOptions
from engine.errors import ModelFormatError
from engine.runtime.draft_pace import DraftPace
from engine.runtime.guessing import Guess
from engine.runtime.request import Request
from engine.types import Completion, FinishReason, Prompt, SamplingParams
from tests.engine.engine_stage import read
from tests.engine.releases import release
from tests.engine.tiny_model import exchange_two_tokens, make_tiny_model

PROMPT = Prompt(tuple(range(5, 40)))
PARAMS = SamplingParams(temperature=0.7, repetition_penalty=1.0, max_new_tokens=60)


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draft three tokens whatever it brings."""
    monkeypatch.setattr(DraftPace, "length", lambda _: 3)
    return iter(())


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[int], int]]:
    """What was drafted, and how many tokens of it were accepted."""
    seen: list[tuple[Sequence[int], int]] = []
    draft, record = Drafter.draft, Drafter.record

    def remember(drafter: Drafter, request: Request) -> list[Guess]:
        guesses = draft(drafter, request)
        if guesses:
            seen.append(([guess.token for guess in guesses], -1))
        return guesses

    def finish(drafter: Drafter, request: Request, num_accepted: int, step_s: float) -> None:
        if drafter._num_drafted:
            seen[-1] = (seen[-1][0], num_accepted)
        record(drafter, request, num_accepted, step_s)

    monkeypatch.setattr(Drafter, "draft", remember)
    monkeypatch.setattr(Drafter, "record", finish)
    return seen


def options(draft: Path | None, **changes: object) -> EngineOptions:
    return EngineOptions(num_threads=1, max_concurrent=2, device="cpu", draft_model=draft, **changes)  # type: ignore[arg-type]


async def _answer(folder: Path, draft: Path | None, params: SamplingParams = PARAMS) -> Completion:
    async with await Engine.open(folder, options(draft)) as engine:
        return await read(engine.generate(PROMPT, params))


async def test_a_model_that_says_the_same_has_all_its_drafts_accepted(
    tmp_path: Path, drafted: list[tuple[Sequence[int], int]]
) -> None:
    folder = make_tiny_model(tmp_path / "model", num_kv_heads=4)
    completion = await _answer(folder, folder)
    assert completion.usage.num_new_tokens > 20 or completion.finish_reason is FinishReason.STOP
    num_drafted = sum(len(tokens) for tokens, _ in drafted)
    num_accepted = sum(number for _, number in drafted)
    assert num_drafted >= 6
    assert num_accepted >= num_drafted - 3, "but for rounding, and the end of the answer"


async def test_another_model_is_corrected(tmp_path: Path, drafted: list[tuple[Sequence[int], int]]) -> None:
    folder = make_tiny_model(tmp_path / "model", num_kv_heads=4)
    draft = make_tiny_model(tmp_path / "draft", num_kv_heads=2, seed=5, context_length=64)
    completion = await _answer(folder, draft, SamplingParams(temperature=1.5, max_new_tokens=90))
    assert completion.usage.num_new_tokens == 90 or completion.finish_reason is FinishReason.STOP
    assert drafted
    # Its context is shorter: behind that there are no drafts.
    assert len(PROMPT.ids) + sum(1 + number for _, number in drafted) <= 64 + 4
    assert any(number < len(tokens) for tokens, number in drafted)


async def test_a_reproducible_answer_is_the_same_with_a_draft_model(
    tmp_path: Path, drafted: list[tuple[Sequence[int], int]]
) -> None:
    folder = make_tiny_model(tmp_path / "model", num_kv_heads=4)
    draft = make_tiny_model(tmp_path / "draft", seed=5)
    for params in (
        SamplingParams(temperature=0.0, max_new_tokens=40),
        SamplingParams(temperature=1.0, seed=3, max_new_tokens=40),
    ):
        assert (await _answer(folder, draft, params)).text == (await _answer(folder, None, params)).text
    assert not drafted


async def test_a_fault_of_the_draft_model_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_tiny_model(tmp_path / "model", num_kv_heads=4)
    draft = make_tiny_model(tmp_path / "draft", seed=5)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    async with await Engine.open(folder, options(draft)) as engine:
        monkeypatch.setattr(Drafter, "_guess", fail)
        for _ in range(2):
            completion = await read(engine.generate(PROMPT, PARAMS))
            assert completion.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "The draft model failed and is not used any more."
    ]


async def test_a_fault_of_the_model_leaves_the_draft_model_in_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drafted: list[tuple[Sequence[int], int]]
) -> None:
    folder = make_tiny_model(tmp_path / "model", num_kv_heads=4)
    compute, num_runs = CpuModel.decode_several, 0

    def fail_once(model: CpuModel, *arguments: object) -> object:
        nonlocal num_runs
        num_runs += 1
        if num_runs == 3:
            raise RuntimeError("broken")
        return compute(model, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(CpuModel, "decode_several", fail_once)
    async with await Engine.open(folder, options(folder)) as engine:
        failing = engine.generate(PROMPT, PARAMS)
        with pytest.raises(Exception, match="failed while it was answering"):
            await read(failing)
        drafted.clear()
        await read(engine.generate(PROMPT, PARAMS))
    assert sum(number for _, number in drafted) >= sum(len(tokens) for tokens, _ in drafted) - 3


async def test_what_cannot_draft_is_refused_when_the_model_is_loaded(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    other = exchange_two_tokens(make_tiny_model(tmp_path / "other"))
    with pytest.raises(ModelFormatError, match="tiny has another tokenizer than tiny and cannot draft"):
        await Engine.open(folder, options(other))
    with pytest.raises(ModelFormatError):
        await Engine.open(folder, options(tmp_path / "nothing"))
    with pytest.raises(ModelFormatError, match="runs as it was released"):
        await Engine.open(release(), options(folder))
    with pytest.raises(ModelFormatError, match=r"cannot draft\. Convert it first"):
        await Engine.open(folder, options(release()))


async def test_where_speculation_is_off_it_is_not_loaded(
    tmp_path: Path, drafted: list[tuple[Sequence[int], int]]
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    async with await Engine.open(folder, options(folder, speculation=False)) as engine:
        await read(engine.generate(PROMPT, PARAMS))
    assert not drafted
