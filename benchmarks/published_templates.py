"""Are the prompts those of transformers, for chat templates that models are published with?

    python -m benchmarks.published_templates FOLDER

FOLDER holds templates, each in a file `NAME.jinja`, wherever they are from: they are not part of this
program, which may not hand all of them on. Each is tried with the kinds of tokenizer that its models have
(`tokenizer_kinds.py` of the tests), in dialogs with and without a system prompt and with several turns. What
transformers refuses, a system prompt for which a template has no place, is compared as it is told then:
before the first question. A template that leaves it to the caller whether its model thinks is tried with
that on, off and not said, also in dialogs that speak of it themselves.

It needs `pip install transformers` beside the development requirements.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import print_table
from engine.convert.hf_tokenizer import HuggingFaceTokenizer
from engine.errors import EngineError
from engine.text.model_text import ModelText
from engine.text.tokenizer import load_tokenizer
from engine.types import ChatMessage
from tests.engine.prompt_cases import ABOUT_THINKING, DIALOGS, PromptModel
from tests.engine.tokenizer_kinds import KINDS, Kind

_SPECIAL = re.compile(
    r"<\|[\w▁-]+\|>|<｜[\w▁]+｜>|<(?:start|end)_of_\w+>|<(?:extra_id|SPECIAL)_\d+>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|THINK)\]"
)
_BY_SIGN = {
    "<start_of_turn>": ("gemma",),
    "<|start_header_id|>": ("llama-3",),
    "<|im_sep|>": ("dbrx", "gpt-4o"),
    "<|start_of_role|>": ("smollm",),
    "<|im_start|>": ("qwen2", "smollm", "llama-2"),
    "<｜": ("deepseek-llm", "qwen2"),
    "[SYSTEM_PROMPT]": ("tekken",),
    "[INST]": ("mistral", "llama-2", "tekken"),
    "<|end|>": ("phi-3", "gpt-4o"),
    "<|user|>": ("dbrx", "phi-3", "mistral"),
}
_OTHERS = ("llama-2", "always", "gpt-2")
_PLAIN_KINDS = ("llama-2", "mistral")
"""In whose models `[INST]` is text."""
_MANY_TOKENS = 10**6


@dataclass
class Result:
    """How many dialogs of a template agree, with each kind of tokenizer; `problems` says what does not."""

    num_dialogs: int = 0
    problems: tuple[str, ...] = ()
    chat_format: str = ""


def kinds_of(template: str) -> tuple[str, ...]:
    """Return the kinds of tokenizer that models with such a template have."""
    return next((kinds for sign, kinds in _BY_SIGN.items() if sign in template), _OTHERS)


def control_in(template: str, kind: str) -> list[str]:
    """Return the control tokens that a template writes."""
    found = dict.fromkeys(_SPECIAL.findall(template))
    return [text for text in found if not (kind in _PLAIN_KINDS and text.startswith("["))]


def compare(template: str, name: str, kind: Kind) -> Result:
    """Return how a template's prompts with one kind of tokenizer agree with transformers'."""
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for file, content in kind.folder(template, control_in(template, name)).items():
            (folder / file).write_bytes(content)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        num_rows = kind.tokenizer(control_in(template, name)).get_vocab_size()
        made = HuggingFaceTokenizer(folder, num_rows)
        eos = made.token_ids("eos_token")
        tokenizer = load_tokenizer(folder, made.save(folder, eos))
        try:
            text = ModelText(PromptModel(made.chat, 1, eos[0], vocab_size=num_rows), tokenizer)
        except EngineError as error:
            return Result(0, (f"{name}: {error}",))
    # The bot tells a model of a format of our own the system prompt that its template had in itself.
    default = made.chat.default_system_prompt if made.chat.format == "chatml" else ""
    before = [{"role": "system", "content": default}] if default else []
    switch = made.chat.thinking_switch if text.thinks is not None else ""
    problems, num_dialogs = [], 0
    for thinking in (None, True, False) if switch else (None,):
        switches = {} if thinking is None else {switch: thinking}
        for dialog in [*DIALOGS, *ABOUT_THINKING]:
            told = dialog if dialog[0]["role"] == "system" else [*before, *dialog]
            expected, got = transformers_ids(theirs, dialog, switches), _ours(text, told, thinking)
            num_dialogs += 1
            if expected != got and not _differs_by_marks(theirs, dialog, expected, got):
                said = json.dumps(dialog, ensure_ascii=False)[:90]
                problems.append(f"{name}: {switches or ''} {said}: {_difference(expected, got)}")
    thinks = f" {switch}, as a rule {text.thinks}" if switch else ""
    return Result(num_dialogs, tuple(problems), f"{made.chat.format or 'none'}{thinks}")


def transformers_ids(
    tokenizer: Any, dialog: list[dict[str, str]], switches: Mapping[str, bool] | None = None
) -> list[int] | str:
    """Return transformers' ids; where there is no place for a system prompt, with that folded in.

    switches: variables of the template's own.
    """
    others = switches or {}

    def ids(messages: list[dict[str, str]]) -> list[int]:
        found: list[int] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, **others
        )
        return found

    def text(messages: list[dict[str, str]]) -> str:
        said: str = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **others
        )
        return said

    try:
        if dialog[0]["role"] != "system":
            return ids(dialog)
        try:
            if "Answer in verse." in text([{"role": "system", "content": "Answer in verse."}, *_PLAIN]):
                return ids(dialog)
        except Exception:  # noqa: BLE001, S110 - the template has no place for it
            pass
        system, first, *rest = dialog
        return ids([{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest])
    except Exception:  # noqa: BLE001 - the template is a foreign program
        return "refused"


_PLAIN = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Fine, thanks."},
    {"role": "user", "content": "And now?"},
]


def _ours(text: ModelText, dialog: list[dict[str, str]], thinking: bool | None) -> list[int] | str:
    try:
        messages = [ChatMessage(one["role"], one["content"]) for one in dialog]  # type: ignore[arg-type]
        return list(text.fit_prompt(messages, _MANY_TOKENS, thinking=thinking).ids)
    except EngineError as error:
        return "refused" if "refuses this dialog" in str(error) else f"refused: {error}"


def _differs_by_marks(
    tokenizer: Any, dialog: list[dict[str, str]], expected: list[int] | str, got: list[int] | str
) -> bool:
    """Tell whether all that differs is that marks in a message are text here: no message becomes control."""
    if isinstance(expected, str) or isinstance(got, str):
        return False
    texts = [tokenizer.decode(ids) for ids in (expected, got)]
    return any("<think>" in one["content"] for one in dialog) and texts[0] == texts[1]


def _difference(expected: list[int] | str, got: list[int] | str) -> str:
    if isinstance(expected, str) or isinstance(got, str):
        return f"transformers {str(expected)[:60]}, here {str(got)[:60]}"
    at = next((i for i, pair in enumerate(zip(expected, got, strict=False)) if pair[0] != pair[1]), -1)
    return f"at {at}: transformers {expected[at : at + 6]}, here {got[at : at + 6]}"


def results(folder: Path) -> Iterator[tuple[str, list[Result]]]:
    """Give what came of each template in a folder."""
    for path in sorted(folder.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        yield path.stem, [compare(template, kind, KINDS[kind]) for kind in kinds_of(template)]


def main() -> None:
    """Compare, and print a table and what differs."""
    rows, num_equal, problems = [], 0, []
    for name, found in results(Path(sys.argv[1])):
        wrong = [problem for one in found for problem in one.problems]
        num_dialogs = sum(one.num_dialogs for one in found)
        num_equal += not wrong
        formats = " ".join(one.chat_format for one in found)
        rows.append([name, formats, f"{num_dialogs - len(wrong)} of {num_dialogs}"])
        problems += [f"{name}, {problem}" for problem in wrong[:3]]
    print_table("Prompts equal to those of transformers", ["template", "format", "dialogs"], rows)
    print("\n".join(problems))
    print(f"{num_equal} of {len(rows)} templates are equal in all dialogs.")


if __name__ == "__main__":
    main()
