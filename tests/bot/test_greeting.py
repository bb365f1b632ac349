"""What the bot of the playground says first."""

from __future__ import annotations

import pytest

from bot.config_keys import KEYS
from bot.greeting import greeting, spoken
from bot.language.phrases import LANGUAGES
from engine.advising.advice import Fit
from engine.advising.catalogue import ENTRIES, Here
from engine.convert.default_model import NAME
from engine.hub.address import HubAddress

LONGEST = max(ENTRIES, key=lambda entry: len(entry.address) + len(entry.name))
PARSE = {key.name: key.parse for key in KEYS}["MODEL"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_it_says_what_it_is_what_would_be_better_and_what_to_try(language: str) -> None:
    here = Here(LONGEST, 3 * 2**30, 5 * 2**30, Fit.YES, 7.31)
    text = spoken(greeting("Llamacord", here), language)
    assert len(text) <= 2000  # as much as Discord takes in one message
    assert "`@Llamacord`" in text
    assert NAME in text
    assert LONGEST.name in text
    assert "7.3" in text
    assert "5.0 GiB" in text
    line = next(line for line in text.splitlines() if line.startswith("MODEL="))
    assert PARSE(line.removeprefix("MODEL=")) == HubAddress(LONGEST.repository, "Q4_K_M")
    assert sum(line.startswith("> @Llamacord ") for line in text.splitlines()) == 3


@pytest.mark.parametrize("language", LANGUAGES)
def test_where_none_fits_it_says_where_to_look(language: str) -> None:
    text = spoken(greeting("Llamacord", None), language)
    assert "python -m engine models" in text
    assert "MODEL=" not in text


def test_it_speaks_the_language_of_the_server() -> None:
    assert spoken(greeting("Llamacord", None), "de").startswith("Hallo!")
    assert spoken(greeting("Llamacord", None), "en-US").startswith("Hello!")
    assert spoken(greeting("Llamacord", None), "ja").startswith("Hello!")
