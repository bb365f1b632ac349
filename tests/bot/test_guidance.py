"""The operator's guidance: which one holds for which model, and that no other text removes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.parameters import Guidance, GuidanceChoice, join
from engine.types import META_SYSTEM_PROMPT, PRESETS, ModelInfo, preset_name

AUTO, SAFE, NONE = GuidanceChoice.AUTO, GuidanceChoice.SAFE, GuidanceChoice.NONE
LLAMA_2 = ModelInfo("Llama 2", "int8", "cpu", "llama-2", 4096, META_SYSTEM_PROMPT)
SMALL = ModelInfo("Small", "int8", "cpu", "chatml", 4096, "You are small.")
META = META_SYSTEM_PROMPT


@pytest.mark.parametrize(
    ("choice", "is_kept", "info", "own", "expected"),
    [
        (AUTO, True, LLAMA_2, None, META),
        (AUTO, True, LLAMA_2, "Rhyme.", f"{META}\n\nRhyme."),
        (AUTO, True, LLAMA_2, "", META),
        (AUTO, True, LLAMA_2, META, META),
        (AUTO, False, LLAMA_2, None, META),
        (AUTO, False, LLAMA_2, "Rhyme.", "Rhyme."),
        (AUTO, False, LLAMA_2, "", ""),
        (AUTO, True, SMALL, None, "You are small."),
        (AUTO, True, SMALL, "Rhyme.", "Rhyme."),
        (AUTO, True, SMALL, "", ""),
        (AUTO, True, SMALL, META, META),
        (SAFE, True, SMALL, None, f"{META}\n\nYou are small."),
        (SAFE, True, SMALL, "Rhyme.", f"{META}\n\nRhyme."),
        (NONE, True, LLAMA_2, None, ""),
        (NONE, True, LLAMA_2, "Rhyme.", "Rhyme."),
        (NONE, True, SMALL, None, "You are small."),
    ],
)
def test_what_the_model_is_told(
    choice: GuidanceChoice, is_kept: bool, info: ModelInfo, own: str | None, expected: str
) -> None:
    assert Guidance(choice, is_kept).system_prompt(own, info) == expected


@given(own=st.none() | st.text() | st.builds("{}{}".format, st.text(max_size=5), st.just(META)))
def test_whatever_is_written_the_guidance_comes_first_and_what_is_written_is_all_there(
    own: str | None,
) -> None:
    told = Guidance(SAFE).system_prompt(own, SMALL)
    assert told.startswith(META)
    assert (own or "").strip() in told


@given(text=st.text())
def test_joining_twice_is_joining_once(text: str) -> None:
    once = join(META, text)
    assert join(META, once) == once
    assert join("", text) == text


def test_presets_are_known_by_their_text() -> None:
    assert [preset_name(text) for text in PRESETS.values()] == ["safe", "none"]
    assert preset_name("Rhyme.") is None
