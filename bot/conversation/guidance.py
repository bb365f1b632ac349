"""What the operator has the model told before any other text, and whether that may be replaced. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engine.guidance import META_SYSTEM_PROMPT, PRESETS, join
from engine.types import ModelInfo

_GUIDED_FORMAT = "llama-2"
"""Models of this chat format were trained with Meta's guidance; others mostly pay for it in context."""


class GuidanceChoice(StrEnum):
    """AUTO is SAFE for Llama 2 and NONE for other models."""

    AUTO = "auto"
    SAFE = "safe"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Guidance:
    """The operator's choice. With `is_kept` no other text takes the guidance's place: it only follows it."""

    choice: GuidanceChoice = GuidanceChoice.AUTO
    is_kept: bool = True

    def text_for(self, chat_format: str | None) -> str:
        """Return the guidance for a model of this chat format, or nothing."""
        if self.choice is not GuidanceChoice.AUTO:
            return PRESETS[self.choice]
        return META_SYSTEM_PROMPT if chat_format == _GUIDED_FORMAT else ""

    def system_prompt(self, own: str | None, info: ModelInfo) -> str:
        """Return what the model is told, where `own` is the text in force; None has the model's own stand in.

        The text that a Llama 2 model brings is the guidance itself, which is the operator's to choose.
        """
        guidance = self.text_for(info.chat_format)
        if own is None:
            brought = info.default_system_prompt
            return join(guidance, "" if brought == META_SYSTEM_PROMPT else brought)
        return join(guidance, own) if self.is_kept else own
