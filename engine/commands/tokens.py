"""`python -m engine tokens`: shows the exact ids and text that a model sees for each dialog."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.commands import Subparsers
from engine.convert.converter import open_source
from engine.describing.manifest import MANIFEST_FILE, ChatSpec
from engine.errors import EngineError, ModelFormatError, PromptError
from engine.opening import open_folder
from engine.release.files import is_release
from engine.text.chat_choice import format_names, named_chat
from engine.text.prompt import ChatFormat, ChatModel, fit_prompt, make_chat_format
from engine.text.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from engine.types import ChatMessage

_ROLES = ("system", "user", "assistant")


class _Reader(NamedTuple):
    """How a model reads: its tokenizer and its chat format."""

    tokenizer: Tokenizer
    chat_format: ChatFormat


class _Identity(NamedTuple):
    """A `ChatModel` of its bare values."""

    chat: ChatSpec
    bos_id: int
    eos_id: int
    stop_ids: tuple[int, ...]


def add_to(commands: Subparsers) -> None:
    """Add the command's arguments."""
    command = commands.add_parser(
        "tokens",
        help="show the ids and text that a model sees for dialogs",
        description='Reads dialogs from standard input: one JSON list of {"role", "content"} per line.',
    )
    read = command.add_mutually_exclusive_group(required=True)
    read.add_argument("--model", type=Path, help="a model folder, or anything that convert reads")
    read.add_argument("--tokenizer", type=Path, help="only a tokenizer.model; needs --format")
    command.add_argument(
        "--format",
        "--chat-template",
        dest="format",
        default="",
        metavar="NAME|FILE",
        help=f"instead of the model's chat format: {', '.join(format_names())}, or a file with a template",
    )
    command.add_argument(
        "--json", action="store_true", help="print one object per line: ids and text, or error"
    )
    command.set_defaults(act=_show)


def _show(arguments: argparse.Namespace) -> int:
    if arguments.model:
        reader = _of_model(arguments.model, arguments.format)
    elif arguments.format:
        reader = _of_tokenizer(arguments.tokenizer, arguments.format)
    else:
        raise ModelFormatError("A tokenizer doesn't say how dialogs are written: add --format.")
    for number, line in enumerate(sys.stdin.buffer, start=1):
        if line.strip():
            _print_dialog(reader, number, line, as_json=arguments.json)
    return 0


def _print_dialog(reader: _Reader, number: int, line: bytes, *, as_json: bool) -> None:
    """Print what becomes of one line. A refused dialog does not keep the others from being shown."""
    try:
        ids = fit_prompt(reader.chat_format, _parse(line), sys.maxsize).ids
    except EngineError as error:
        message = f"Line {number}: {error}"
        print(json.dumps({"error": message}) if as_json else message)
        return
    text = _written(reader.tokenizer, ids)
    if as_json:
        print(json.dumps({"ids": ids, "text": text}))
    else:
        print(f"Line {number}: {len(ids)} tokens\n  {json.dumps(text, ensure_ascii=False)}\n  ", end="")
        print(*ids)


def _parse(line: bytes) -> list[ChatMessage]:
    """Return the dialog of a line. Raises `PromptError`."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError("This is not valid JSON.") from error
    if not isinstance(raw, list) or not all(isinstance(message, dict) for message in raw):
        raise PromptError('A dialog must be a JSON list of objects {"role": …, "content": …}.')
    for message in raw:
        if message.get("role") not in _ROLES:
            raise PromptError(f"A role must be one of {', '.join(_ROLES)}, not {message.get('role')!r}.")
        if not isinstance(message.get("content"), str):
            raise PromptError("The content of a message must be text.")
    return [ChatMessage(message["role"], message["content"]) for message in raw]


def _written(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text that ids stand for, control tokens in their written form."""
    return "".join(_runs(tokenizer, ids))


def _runs(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[str]:
    control = {token: text for text, token in tokenizer.special_ids.items()}
    added = _spelled(tokenizer, tokenizer.encode("a")).removesuffix("a")
    run: list[int] = []
    for token in (*ids, None):
        if token is not None and token not in control:
            run.append(token)
            continue
        # The space that some put before a text is their own.
        yield _spelled(tokenizer, run).removeprefix(added)
        if token is not None:
            yield control[token]
            added = _spelled(tokenizer, tokenizer.encode_inside("a")).removesuffix("a")
        run = []


def _spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return b"".join(tokenizer.token_bytes[token] for token in ids).decode(errors="replace")


def _of_model(path: Path, chat_format: str) -> _Reader:
    if (path / MANIFEST_FILE).exists() or is_release(path):
        folder = open_folder(path)
        return _reader(folder, folder.load_tokenizer(), chat_format)
    source = open_source(path, chat=named_chat(chat_format))
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = load_tokenizer(Path(scratch), source.save_tokenizer(Path(scratch)))
    return _reader(source, tokenizer, "")


def _of_tokenizer(path: Path, chat_format: str) -> _Reader:
    tokenizer = SentencePieceTokenizer(path)
    bos_id, eos_id = tokenizer.bos_id, tokenizer.eos_id
    if min(bos_id, eos_id) < 0:
        raise ModelFormatError(f"{path.name} has no tokens for the beginning and the end.")
    return _reader(_Identity(ChatSpec(None), bos_id, eos_id, ()), tokenizer, chat_format)


def _reader(model: ChatModel, tokenizer: Tokenizer, chat_format: str) -> _Reader:
    made = make_chat_format(model, tokenizer, chat_format)
    if made is None:
        raise ModelFormatError("This is a base model without a chat format. Name one with --format.")
    return _Reader(tokenizer, made)
