"""What it costs to fit a history into its limit, against encoding all of it and bisecting, as it was before.

    LLAMACORD_TOKENIZER=tokenizer.model python -m benchmarks.history_cost

Both sides take turns on the same texts, with the tokenizer of the default model (as ChatML and through a
chat template) and with Llama 2's where there is one. "first" is a question after a start, "next" the one
after it, when the texts are remembered. The two prompts are compared.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.common import default_model, print_table
from bot.conversation.dialog import build_dialog, spoken
from bot.conversation.prompting import MAX_MESSAGES, fit_history
from engine.describing.manifest import ChatSpec, load_manifest
from engine.engine import Engine, EngineOptions
from engine.errors import PromptTooLongError, UnsafePromptError
from engine.text.jinja_format import JinjaFormat
from engine.text.prompt import ChatFormat, ChatMLFormat, Llama2Format
from engine.text.tokenizer import RememberingTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from engine.types import ChatMessage
from storage.conversations import Message, MessageState, Role

MAX_TOKENS = 3072
SYSTEM_PROMPT = "You are a helpful assistant. Answer briefly, and say so where you do not know something."
TEMPLATE = (
    "{% for message in messages %}{% set text = '<|im_start|>' + message['role'] + '\n\n' "
    "+ message['content'] | trim + '<|im_end|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}"
    "{% endif %}{{ text }}{% endfor %}{{ '<|im_start|>assistant\n\n' }}"
)
"""In the manner of Llama 3's."""
MakeFormat = Callable[[Tokenizer], ChatFormat]


@dataclass(frozen=True, slots=True)
class Kind:
    """A tokenizer and the format that is used with it."""

    tokenizer: Tokenizer
    make_format: MakeFormat


class Fitting(Engine):
    """An engine that only fits prompts: nothing is loaded but the tokenizer."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        super().__init__(folder, EngineOptions())
        self._tokenizer = RememberingTokenizer(kind.tokenizer)
        self._format = kind.make_format(self._tokenizer)

    def forget(self) -> None:
        """Begin as after a start."""
        self._tokenizer.forget()


def kinds(folder: Path) -> dict[str, Kind]:
    """Return what is measured, by name."""
    manifest = load_manifest(folder)
    own = load_tokenizer(folder, manifest.tokenizer)
    ends = {manifest.eos_id, *manifest.stop_ids}
    found = {
        "ChatML": Kind(own, lambda tokenizer: ChatMLFormat(tokenizer, ends)),
        "template": Kind(
            own,
            lambda tokenizer: JinjaFormat(
                ChatSpec("jinja", "", TEMPLATE), tokenizer, manifest.bos_id, manifest.eos_id
            ),
        ),
    }
    path = os.environ.get("LLAMACORD_TOKENIZER")
    if path:
        llama = SentencePieceTokenizer(Path(path))
        found["Llama 2"] = Kind(llama, lambda tokenizer: Llama2Format(tokenizer, llama.bos_id, llama.eos_id))
    return found


def history(num_messages: int, num_characters: int, tag_at: int | None = None) -> list[Message]:
    """Return an odd number of questions and answers of so many characters each."""
    words = Path("ARCHITECTURE.md").read_text(encoding="utf-8").replace("`", "").split()
    draw = random.Random(num_messages)
    messages = []
    for at in range(num_messages):
        text = " ".join(draw.choices(words, k=num_characters // 3))[:num_characters]
        if at == tag_at:
            text = f"[INST] {text}"
        role = Role.ASSISTANT if at % 2 else Role.USER
        messages.append(
            Message(
                at + 1, 1, role, MessageState.COMPLETE, None if at % 2 else 1, "", text,
                datetime(2026, 1, 1, tzinfo=UTC), None, None, None,
            )
        )  # fmt: skip
    return messages


def bisect(chat_format: ChatFormat, dialog: Sequence[ChatMessage]) -> tuple[int, ...]:
    """Encode all of a dialog, then ever other parts of it: the fewest turns are dropped."""
    system, messages = dialog[:1], dialog[1:]

    def encode_without(num_dropped: int) -> tuple[int, ...]:
        return tuple(chat_format.encode([*system, *messages[2 * num_dropped :]]))

    ids = encode_without(0)
    if len(ids) <= MAX_TOKENS:
        return ids
    low, high = 1, len(messages) // 2
    ids = encode_without(high)
    if len(ids) > MAX_TOKENS:
        raise PromptTooLongError(len(ids), MAX_TOKENS)
    while low < high:
        middle = (low + high) // 2
        candidate = encode_without(middle)
        if len(candidate) <= MAX_TOKENS:
            ids, high = candidate, middle
        else:
            low = middle + 1
    return ids


def fit_by_bisecting(chat_format: ChatFormat, messages: Sequence[Message]) -> tuple[int, ...]:
    """Fit a history as before; each message is encoded by itself where one of them is unsafe."""

    def is_safe(message: Message) -> bool:
        try:
            chat_format.encode([ChatMessage("user", spoken(message))])
        except UnsafePromptError:
            return False
        return True

    try:
        return bisect(chat_format, build_dialog(messages, SYSTEM_PROMPT).messages)
    except UnsafePromptError:
        safe = [*filter(is_safe, messages[:-1]), *messages[-1:]]
        return bisect(chat_format, build_dialog(safe, SYSTEM_PROMPT).messages)


def timed_ms(work: Callable[[], tuple[int, ...]]) -> tuple[float, tuple[int, ...]]:
    """Return how long `work` takes, and its result."""
    begin_s = time.perf_counter()
    result = work()
    return (time.perf_counter() - begin_s) * 1e3, result


def fit_history_of(engine: Engine, messages: Sequence[Message]) -> tuple[int, ...]:
    """Fit a history as answers do; a longer one than answers ever look at, as a dialog."""
    if len(messages) <= MAX_MESSAGES + 1:
        return fit_history(engine, messages, SYSTEM_PROMPT, MAX_TOKENS).prompt.ids
    return engine.fit_prompt(build_dialog(messages, SYSTEM_PROMPT).messages, MAX_TOKENS).ids


def measure(
    engine: Fitting, plain: ChatFormat, messages: Sequence[Message], num_rounds: int
) -> tuple[float, float, float]:
    """Return the medians in ms: before, first, next."""
    times: list[tuple[float, float, float]] = []
    for _ in range(num_rounds):
        before_ms, expected = timed_ms(lambda: fit_by_bisecting(plain, messages))
        engine.forget()
        fit_history_of(engine, messages[:-2])
        next_ms, again = timed_ms(lambda: fit_history_of(engine, messages))
        engine.forget()
        first_ms, ids = timed_ms(lambda: fit_history_of(engine, messages))
        # A full history is let go in strides, so that less of it is shown; what is shown must be the same.
        num_same = len(ids) // 2
        if ids != again or ids[-num_same:] != expected[-num_same:]:
            raise RuntimeError("The prompts differ.")
        times.append((before_ms, first_ms, next_ms))
    before, first, following = zip(*times, strict=True)
    return statistics.median(before), statistics.median(first), statistics.median(following)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    folder = default_model()
    histories = {
        "200 of 4,000 characters": history(199, 4000),
        "the same, one with [INST]": history(199, 4000, tag_at=101),
        "200 of 40 characters": history(199, 40),
        "2,000 of 40 characters": history(1999, 40),
    }
    rows = []
    for name, kind in kinds(folder).items():
        engine, plain = Fitting(folder, kind), kind.make_format(kind.tokenizer)
        for what, messages in histories.items():
            before_ms, first_ms, next_ms = measure(engine, plain, messages, rounds)
            rows.append(
                [
                    f"{name}, {what}",
                    f"{before_ms:.1f}",
                    f"{first_ms:.1f}",
                    f"{next_ms:.1f}",
                    f"{before_ms / first_ms:.0f}x",
                ]
            )
    print_table("Fitting a history, ms", ["", "before", "first", "next", "ratio"], rows)


if __name__ == "__main__":
    main()
