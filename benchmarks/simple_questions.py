"""What share of simple questions does the model answer, by the settings that it is asked with?

    python -m benchmarks.simple_questions
    python -m benchmarks.simple_questions --model FOLDER --settings temperature=0.7,repetition_penalty=1.1

Asks each question of `simple_questions.json` with four seeds, without a history. An answer counts where one
of the accepted words stands in its first sentences, as a word of its own. Without `--settings` the former
defaults of this program are compared with those that hold now, which are the model's own where it has any.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import answer, default_model, print_table
from engine.engine import Engine, EngineOptions
from engine.types import ChatMessage, SamplingParams, TextEngine

QUESTIONS_FILE = Path(__file__).with_name("simple_questions.json")
SEEDS = (1, 2, 3, 4)
FORMER = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1}
_MAX_NEW_TOKENS = 64
_READ_CHARACTERS = 200
"""Who asks for a capital reads no further: a page that names it somewhere is no answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the words of which one must come in its answer."""

    text: str
    accepted: tuple[str, ...]

    def is_answered_by(self, said: str) -> bool:
        """Tell whether the beginning of an answer has one of the accepted words."""
        begun = said[:_READ_CHARACTERS]
        return any(
            re.search(rf"(?<!\w){re.escape(word)}(?!\w)", begun, re.IGNORECASE) for word in self.accepted
        )


def questions() -> list[Question]:
    """Return all questions."""
    raw: dict[str, list[str]] = json.loads(QUESTIONS_FILE.read_text(encoding="utf-8"))
    return [Question(text, tuple(accepted)) for text, accepted in raw.items()]


async def share_answered(engine: TextEngine, values: Mapping[str, float], system: str) -> dict[str, int]:
    """Return with how many seeds each question was answered, where the model is told `system` first."""
    params = dataclasses.replace(SamplingParams(max_new_tokens=_MAX_NEW_TOKENS), **values)  # type: ignore[arg-type]
    before = [ChatMessage("system", system)] if system else []
    found = {}
    for question in questions():
        prompt = engine.fit_prompt([*before, ChatMessage("user", question.text)], 2048)
        said = [
            await answer(engine, prompt, dataclasses.replace(params, seed=seed, top_k=int(params.top_k)))
            for seed in SEEDS
        ]
        found[question.text] = sum(question.is_answered_by(one.text) for one in said)
    return found


def read_settings(written: str) -> dict[str, float]:
    """Return the settings in `temperature=0.2,top_p=0.9`."""
    pairs = (part.split("=", 1) for part in written.split(","))
    return {name.strip(): float(value) for name, value in pairs}


async def _compare(folder: Path, named: Mapping[str, Mapping[str, float]], system: str | None) -> None:
    async with await Engine.open(folder, EngineOptions()) as engine:
        named = named or {"former defaults": FORMER, "defaults": engine.info.sampling}
        told = engine.info.default_system_prompt if system is None else system
        found = {name: await share_answered(engine, values, told) for name, values in named.items()}
    names = list(found)
    rows = [[one.text, *(f"{found[name][one.text]}" for name in names)] for one in questions()]
    asked = len(rows) * len(SEEDS)
    rows.append(["answered", *(f"{sum(found[name].values())} of {asked}" for name in names)])
    print_table(f"Of {len(SEEDS)} seeds each", ["question", *names], rows)


def main() -> None:
    """Ask, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="a converted model; the default one")
    parser.add_argument("--settings", action="append", help="as temperature=0.2,top_p=0.9; may be repeated")
    parser.add_argument("--system", help="what the model is told first; what it brings along")
    arguments = parser.parse_args()
    folder = arguments.model or default_model()
    named: dict[str, Mapping[str, float]] = {text: read_settings(text) for text in arguments.settings or ()}
    asyncio.run(_compare(folder, named, arguments.system))


if __name__ == "__main__":
    main()
