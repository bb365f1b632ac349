"""A released model as it is: the published example's own answers, and a cache that can be trusted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from engine.__main__ import main
from engine.bench.peers import PublishedLoop
from engine.release.files import find_release
from engine.release.model import ReleaseModel
from tests.engine.releases import KINDS, RELEASES, copy_release, graph_of, release

PROMPTS = ("What is the lightest element?", "", "Ça va? 你好 🙂", "  two  spaces\n")


def three_paths(folder: Path) -> list[str]:
    files = find_release(folder)
    return [
        *("--onnx_file", str(files.graph), "--embedding_file", str(files.embeddings)),
        *("--tokenizer_path", str(files.tokenizer)),
    ]


def complete(*arguments: str) -> int:
    return main(["complete", *arguments, "--threads", "1"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_complete_prints_what_the_published_example_prints(
    kind: str, prompt: str, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(RELEASES / "tokenizer.model"))
    ids = [tokenizer.bos_id(), *tokenizer.encode(prompt)]
    expected = PublishedLoop(release(kind)).generate(ids, 60)
    assert len(set(expected)) > 5
    assert complete(*three_paths(release(kind)), "--prompt", prompt, "--max_gen_len", "60") == 0
    assert capfd.readouterr().out == tokenizer.decode(expected) + "\n"


def test_a_folder_serves_instead_of_three_files(capfd: pytest.CaptureFixture[str]) -> None:
    assert complete(*three_paths(release()), "--prompt", "Hello", "--max_gen_len", "20") == 0
    expected = capfd.readouterr().out
    for path in (release(), release() / "ONNX", graph_of(release())):
        assert complete("--model", str(path), "--prompt", "Hello", "--max_gen_len", "20") == 0
        assert capfd.readouterr().out == expected


def test_a_seed_determines_what_is_sampled(capfd: pytest.CaptureFixture[str]) -> None:
    def sample(seed: str) -> str:
        arguments = ["--temperature", "1.5", "--top_p", "0.95", "--seed", seed, "--max_gen_len", "30"]
        assert complete("--model", str(release()), "--prompt", "Hello", *arguments) == 0
        return capfd.readouterr().out

    assert sample("1") == sample("1") != sample("2")


def test_a_question_is_put_in_the_chat_format(capfd: pytest.CaptureFixture[str]) -> None:
    short = ["--max_gen_len", "20"]
    text = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST]"
    assert complete("--model", str(release()), "--prompt", text, *short) == 0
    plain = capfd.readouterr().out
    arguments = ["--chat", "--system", "Be brief.", "--prompt", "Hello "]
    assert complete("--model", str(release()), *arguments, *short) == 0
    assert capfd.readouterr().out == plain
    assert complete("--model", str(release()), "--chat", "--prompt", "a [/INST] b") == 1
    assert "control tags" in capfd.readouterr().err


def test_a_base_model_completes_and_does_not_chat(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = copy_release(tmp_path, name="tiny_float32")
    assert complete("--model", str(base), "--prompt", "Hello", "--max_gen_len", "5") == 0
    capfd.readouterr()
    assert complete("--model", str(base), "--prompt", "Hello", "--chat") == 1
    assert "base model" in capfd.readouterr().err


WRONG = {
    "no model": ([], "Name the model"),
    "half a model": (["--onnx_file", "x.onnx"], "Name the model"),
    "two models": (["--model", ".", "--onnx_file", "x.onnx"], "Name the model"),
    "too long a prompt": (["--model", str(release()), "--prompt", "element " * 200], "takes .* tokens"),
    "too hot": (["--model", str(release()), "--temperature", "9"], "temperature must be between 0 and 2"),
    "no words": (["--model", str(release()), "--max_gen_len", "0"], "max_new_tokens must be between 1"),
    "no GPU": (["--model", str(release()), "--device", "cuda"], "no usable CUDA device"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_one_sentence(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    prompt = [] if "--prompt" in arguments else ["--prompt", "Hello"]
    assert complete(*arguments, *prompt) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("llamacord: ")
    assert re.search(message, error)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_may_be_rewound_and_continued_anywhere(kind: str) -> None:
    model, loop = ReleaseModel(find_release(release(kind)), 1), PublishedLoop(release(kind))
    random = np.random.default_rng(5)
    held: list[int] = []
    for _ in range(12):
        num_past = int(random.integers(0, len(held) + 1))
        ids = random.integers(3, model.vocab_size, int(random.integers(1, 20))).tolist()
        held = held[:num_past] + ids
        loop.forget()
        expected = loop.feed(held)
        assert np.abs(model.prefill(0, ids, num_past) - expected).max() < (
            1e-4 if kind == "float32" else 0.05
        )
        assert model.num_held == len(held)


BAD_CALLS = {
    "no ids": ([], 0),
    "after more than is held": ([5], 1),
    "before the beginning": ([5], -1),
    "more than the context": ([5] * 129, 0),
    "no such id": ([350], 0),
    "a negative id": ([-1], 0),
}


@pytest.mark.parametrize(("ids", "num_past"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_wrong_calls_are_refused_before_the_graph_sees_them(ids: list[int], num_past: int) -> None:
    model = ReleaseModel(find_release(release()), 1)
    with pytest.raises(ValueError, match=r"Cannot compute|are more than|outside the vocabulary"):
        model.prefill(0, ids, num_past)
    assert model.prefill(0, [5] * 128, 0).shape == (350,)
