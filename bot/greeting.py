"""What the bot of the playground says first: what it is, which model suits this machine, what to try."""

from __future__ import annotations

from bot.language.phrases import Phrase, phrase, render
from engine.advising.advice import figure
from engine.advising.catalogue import Here
from engine.convert.default_model import NAME
from engine.describing.footprint import size


def greeting(bot: str, better: Here | None) -> tuple[Phrase, ...]:
    """Return the paragraphs of a bot that runs the default model. better: what would suit the machine."""
    if better is None:
        advice = (phrase("playground.toy", model=NAME), phrase("playground.no_better"))
    else:
        advice = (
            phrase("playground.toy", model=NAME),
            phrase(
                "playground.better",
                name=better.entry.name,
                memory=size(better.memory_bytes),
                speed=figure(better.speed or 0, 2),
                address=better.entry.address,
                download=size(better.disk_bytes),
            ),
        )
    return (phrase("playground.hello", bot=bot), *advice, phrase("playground.try", bot=bot))


def spoken(paragraphs: tuple[Phrase, ...], locale: object) -> str:
    """Return the paragraphs in the language of one of Discord's locales."""
    return "\n\n".join(render(paragraph, locale) for paragraph in paragraphs)
