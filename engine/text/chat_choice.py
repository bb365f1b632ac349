"""Which chat format a model speaks: told by what its template writes, or by a name or a file that somebody
gives.

A format of our own costs less than a template, but it is taken only where the template, rendered over dialogs
of every kind, gives the same text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from engine.describing.manifest import ChatSpec
from engine.errors import ModelFormatError, PromptError
from engine.text.template_process import TemplateProcess
from engine.types import META_SYSTEM_PROMPT, ChatMessage, marks_in

_CLASSICS = Path(__file__).with_name("classics")
_NEEDED = {
    "llama-3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "phi-3": ("<|user|>", "<|assistant|>", "<|end|>"),
    "mistral-v3": ("[INST]", "[/INST]"),
    "mistral-tekken": ("[INST]", "[/INST]"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
}
"""The control tokens without which a model cannot have been trained on a format."""
_SWITCHES = ("enable_thinking", "thinking")
"""What templates call the variable that has their model think, or not."""

Dialog = Sequence[ChatMessage]


@cache
def classic_templates() -> Mapping[str, str]:
    """Return the templates of the formats that models without one were trained on, by name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(_CLASSICS.glob("*.jinja"))}


def format_names() -> list[str]:
    """Return what `named_chat` knows by name."""
    return ["llama-2", "chatml", *classic_templates(), "none"]


def named_chat(chosen: str) -> ChatSpec | None:
    """Return the chat format of a name, or of a file with a template; None for "auto", what the model says
    itself.

    Raises `ModelFormatError`.
    """
    if chosen in ("", "auto"):
        return None
    if chosen == "llama-2":
        return llama2_chat()
    if chosen in ("chatml", "none"):
        return ChatSpec(None if chosen == "none" else chosen)
    template = classic_templates().get(chosen)
    return _with_switch(_of_template(_read(Path(chosen)) if template is None else template))


def llama2_chat() -> ChatSpec:
    """Return Llama 2's format with Meta's system prompt."""
    return ChatSpec("llama-2", META_SYSTEM_PROMPT)


def writes(chat: ChatSpec, token: str) -> bool:
    """Tell whether the format writes `token` as a mark of its own.

    Words and white space are text wherever they stand: Gemma has tokens for several line breaks.
    """
    written = chat.template or " ".join(_NEEDED.get(chat.format or "", ()))
    return token in written and not token.isspace() and not token.isalnum()


def check_tokens(chat: ChatSpec, vocabulary: Container[str]) -> None:
    """Raise `ModelFormatError` where a format of a name needs tokens that a model does not have."""
    names = (name for name, template in classic_templates().items() if template == chat.template)
    name = chat.format if chat.format == "chatml" else next(names, "")
    for token in _NEEDED.get(name or "", ()):
        if token not in vocabulary:
            raise ModelFormatError(f"The tokenizer lacks {token!r}, which the chat format {name} needs.")


def detect_chat(
    template: str,
    tokens: Mapping[str, str] | None = None,
    vocabulary: Container[str] = _NEEDED["chatml"],
    *,
    is_only_text: bool = True,
) -> ChatSpec:
    """Return the chat format that a Jinja template describes: a known one, or the template itself.

    Without a template the format is None. tokens: the template's variables for tokens; vocabulary: of the
    model. is_only_text: whether the tokens stand where the text has them: none swallows white space beside
    it.
    """
    if not template.strip():
        return ChatSpec(None)
    chat = _with_switch(replace(_of_template(template), tokens=tokens or {}))
    if (
        chat.thinking_switch
        or "strftime_now" in template
        or not is_only_text
        or not any(sign in template for sign in ("im_start", "INST"))
    ):
        return chat
    try:
        process = TemplateProcess(template, dict(tokens or {}))
        written = _Written(process)
        if all(token in vocabulary for token in _NEEDED["chatml"]) and (known := _as_chatml(written)):
            return replace(known, reasoning=chat.reasoning)
        if _is_llama_2(written, tokens or {}):
            return llama2_chat()
    except (ModelFormatError, PromptError):
        pass  # whoever makes prompts of it says what is wrong
    return chat


def _of_template(template: str) -> ChatSpec:
    return ChatSpec("jinja", "", template, marks_in(template))


def _read(path: Path) -> str:
    try:
        template = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = ", ".join(format_names())
        raise ModelFormatError(
            f"{path} is neither a chat format with a name ({names}) nor a file with a template."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"{path} cannot be read as a chat template.") from error
    if not template.strip():
        raise ModelFormatError(f"{path} is empty: it is no chat template.")
    return template


def _with_switch(chat: ChatSpec) -> ChatSpec:
    """Add which variable, being false, changes what the template writes before an answer."""
    named = [name for name in _SWITCHES if name in chat.template] if chat.reasoning else []
    bare = [ChatMessage("user", "Hi")]
    dialogs = [bare, [ChatMessage("system", "Be brief."), *bare]]
    for name in named:
        try:
            process = TemplateProcess(chat.template, dict(chat.tokens))
            thinking, silent = (process.render(dialogs, {name: value}) for value in (True, False))
        except (ModelFormatError, PromptError):
            continue
        if thinking != silent and silent[0].error is None:
            return replace(chat, thinking_switch=name)
    return chat


# What decides: messages that a template might trim, look into or treat in another way.
_CONTENTS = ("Hi", " spaced \n", "a\n\nb ", "", "<think>\nHm.\n</think>\n\nSo.", "x" * 70)
_SYSTEM = ("Be brief.", "You are\n\na poet.", " spaced ")


def _dialogs() -> list[list[ChatMessage]]:
    dialogs = [[ChatMessage("user", text)] for text in _CONTENTS]
    for asked, answered in itertools.product(_CONTENTS, _CONTENTS[:2] + _CONTENTS[4:]):
        turns = [ChatMessage("user", asked), ChatMessage("assistant", answered)]
        dialogs.append([*turns, ChatMessage("user", "And?")])
        dialogs.append([*turns, *turns, ChatMessage("user", "Bye ")])
    return dialogs


class _Written:
    """What a template writes: without a system prompt, and with each."""

    def __init__(self, process: TemplateProcess) -> None:
        self.bare = _dialogs()
        self.told = [
            [ChatMessage("system", system), *dialog]
            for system in _SYSTEM
            for dialog in self.bare[:: len(_SYSTEM)]
        ]
        emptied = [ChatMessage("system", ""), *self.bare[0]]
        *rendered, last = process.render([*self.bare, *self.told, emptied])
        self.writes_empty_system = last.text == _chatml_text(emptied)
        texts = [None if one.error is not None else one.text for one in rendered]
        self.bare_texts, self.told_texts = texts[: len(self.bare)], texts[len(self.bare) :]

    def matches(self, write: Callable[[Dialog], str], default: str = "") -> bool:
        """Tell whether `write` writes the same, given the `default` system prompt where there is none."""
        before = [ChatMessage("system", default)] if default else []
        bare = zip(self.bare, self.bare_texts, strict=True)
        told = zip(self.told, self.told_texts, strict=True)
        return all(write([*before, *dialog]) == text for dialog, text in bare) and all(
            write(dialog) == text for dialog, text in told
        )


def _as_chatml(written: _Written) -> ChatSpec | None:
    opening = "<|im_start|>system\n"
    first = written.bare_texts[0] or ""
    default = first.removeprefix(opening).partition("<|im_end|>")[0] if first.startswith(opening) else ""
    is_chatml = written.writes_empty_system and written.matches(_chatml_text, default)
    return ChatSpec("chatml", default) if is_chatml else None


def _chatml_text(dialog: Dialog) -> str:
    said = "".join(f"<|im_start|>{one.role}\n{one.content}<|im_end|>\n" for one in dialog)
    return f"{said}<|im_start|>assistant\n"


def _is_llama_2(written: _Written, tokens: Mapping[str, str]) -> bool:
    """Tell whether a template writes what Meta's example does, with Meta's own system prompt or none."""
    bos, eos = tokens.get("bos_token", ""), tokens.get("eos_token", "")

    def write(dialog: Dialog) -> str:
        texts = [one.content for one in dialog if one.role != "system"]
        if dialog[0].role == "system":
            texts[0] = f"<<SYS>>\n{dialog[0].content}\n<</SYS>>\n\n{texts[0]}"
        stripped = [text.strip() for text in texts]
        turns = zip(stripped[::2], stripped[1::2], strict=False)
        said = "".join(f"{bos}[INST] {asked} [/INST] {answer} {eos}" for asked, answer in turns)
        return f"{said}{bos}[INST] {stripped[-1]} [/INST]"

    return any(written.matches(write, default) for default in ("", META_SYSTEM_PROMPT))
