"""`python -m engine complete`: continues a text with a released Llama-2-Onnx model or a converted one.

Takes the flags of the example that was published with the models, and prints what it prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engine.commands import Subparsers, add_chat_template
from engine.errors import ModelFormatError, PromptTooLongError
from engine.machine import machine
from engine.opening import open_folder
from engine.release.files import ReleaseFiles, require_file
from engine.release.folder import ReleasedFolder
from engine.runtime.model_folder import ModelFolder, RunnerSize
from engine.runtime.request import Request
from engine.runtime.sampling import Sampler
from engine.text.detokenizer import StreamDecoder, padded
from engine.text.prompt import ChatFormat, fit_prompt, make_chat_format
from engine.text.tokenizer import Tokenizer
from engine.types import ChatMessage, Prompt, SamplingParams


def add_to(commands: Subparsers) -> None:
    """Add the command's arguments."""
    command = commands.add_parser("complete", help="continue a text with a released or a converted model")
    command.add_argument("--onnx_file", type=Path, help="graph of a released Llama-2-Onnx model")
    command.add_argument("--embedding_file", type=Path, help="its embeddings.pth")
    command.add_argument("--tokenizer_path", type=Path, help="its tokenizer.model")
    command.add_argument(
        "--model", type=Path, help="the folder of a release or a converted model, instead of these three"
    )
    command.add_argument("--prompt", required=True, help="the text to continue")
    command.add_argument(
        "--max_gen_len", type=int, default=256, help="how many tokens to generate at most; default: 256"
    )
    command.add_argument("--temperature", type=float, help="0 is greedy; default: the model's own, or 0")
    command.add_argument(
        "--top_p",
        type=float,
        help="sample from the likeliest tokens up to this share; default: the model's own, or 1",
    )
    command.add_argument("--seed", type=int, help="the same seed gives the same text")
    command.add_argument("--chat", action="store_true", help="ask the prompt as a question to a chat model")
    command.add_argument("--system", help="with --chat: the system prompt")
    add_chat_template(command)
    command.add_argument("--threads", type=int, default=0, help="CPU threads; default: 0, one per core")
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="for a released model; default: cpu"
    )
    command.set_defaults(act=_complete)


def _complete(arguments: argparse.Namespace) -> int:
    model = _open(arguments)
    params = _params(arguments, model.sampling)
    tokenizer = model.load_tokenizer()
    chat_format = make_chat_format(model, tokenizer, arguments.chat_template) if arguments.chat else None
    ids = _prompt_ids(arguments, model, tokenizer, chat_format)
    num_threads = arguments.threads or machine.num_physical_cores()
    ends = {model.eos_id, *model.stop_ids} | (chat_format.stop_ids if chat_format else frozenset())
    for piece in stream_completion(model, tokenizer, ids, params, num_threads, frozenset(ends)):
        print(piece, end="", flush=True)
    print()
    return 0


def _params(arguments: argparse.Namespace, advice: Mapping[str, float]) -> SamplingParams:
    """Return what was asked for, over the model's own, over the example's, which is greedy."""
    plain = SamplingParams(temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0)
    asked = {"temperature": arguments.temperature, "top_p": arguments.top_p}
    chosen = {**advice, **{name: value for name, value in asked.items() if value is not None}}
    return replace(
        plain,
        **chosen,
        max_new_tokens=arguments.max_gen_len,
        seed=arguments.seed,
    )


def _open(arguments: argparse.Namespace) -> ModelFolder:
    paths = (arguments.onnx_file, arguments.embedding_file, arguments.tokenizer_path)
    if (arguments.model is None) != all(paths) or (arguments.model and any(paths)):
        raise ModelFormatError(
            "Name the model: --onnx_file, --embedding_file and --tokenizer_path, or --model alone."
        )
    if arguments.model is None:
        for path in paths:
            require_file(path)
        return ReleasedFolder(ReleaseFiles(*paths), arguments.device)
    folder = open_folder(arguments.model)
    return ReleasedFolder(folder.files, arguments.device) if isinstance(folder, ReleasedFolder) else folder


def _prompt_ids(
    arguments: argparse.Namespace, model: ModelFolder, tokenizer: Tokenizer, chat_format: ChatFormat | None
) -> list[int]:
    """Return the prompt as the example encodes it, after BOS, or as a chat model is asked."""
    if not arguments.chat:
        return [model.bos_id, *tokenizer.encode(arguments.prompt)]
    system = model.chat.default_system_prompt if arguments.system is None else arguments.system
    dialog = [ChatMessage("system", system)] if system else []
    dialog.append(ChatMessage("user", arguments.prompt))
    limit = model.context_length - 1
    return list(fit_prompt(chat_format, dialog, limit).ids)


def stream_completion(
    model: ModelFolder,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    params: SamplingParams,
    num_threads: int,
    stop_ids: frozenset[int] | None = None,
) -> Iterator[str]:
    """Load the model and give what it says after `ids`, piece by piece, until one of `stop_ids` comes.

    The prompt is computed in one run, as the published example does, so that greedy answers are the same.
    Raises `ModelError`, `PromptTooLongError` and `GenerationFailedError`.
    """
    context = model.context_length
    if len(ids) >= context:
        raise PromptTooLongError(len(ids), context - 1)
    slots = model.load_model(RunnerSize(num_threads, 1, context, context))
    slots.prefill(0, list(ids[:2]), 0)  # so that what is lazily set up does not delay the first word
    slots.decode(0, [ids[0]], [1])
    request = Request(
        request_id=0,
        prompt=Prompt(tuple(ids)),
        params=params,
        sampler=Sampler(params, ids),
        decoder=StreamDecoder(
            padded(tokenizer.token_bytes, model.vocab_size), opening_space_ids=tokenizer.opening_space_ids
        ),
        stop_ids=frozenset({model.eos_id, *model.stop_ids}) if stop_ids is None else stop_ids,
        max_tokens=context,
    )
    logits = slots.prefill(0, list(ids), 0)
    while not (delta := request.accept(logits[None])).is_final:
        yield delta.text
        logits = slots.decode(0, request.ids[-1:], [len(request.ids) - 1])[0]
    yield delta.text
