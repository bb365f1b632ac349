"""Which model an address names, and which of a repository's files it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from engine.describing.architecture import Precision
from engine.errors import ModelFormatError
from engine.hub.address import HubAddress, converted_folder
from engine.hub.choice import Choice, choose

REPOSITORY = "bartowski/Llama-3.2-3B-Instruct-GGUF"
NAME = "Llama-3.2-3B-Instruct"
KINDS = ("IQ4_XS", "Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q6_K", "Q8_0", "f16")
GGUFS = (*(f"{NAME}-{kind}.gguf" for kind in KINDS), "README.md", f"{NAME}.imatrix", "mmproj-f16.gguf")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("hf:a/b", HubAddress("a/b")),
        ("hf:a/b:Q4_K_M", HubAddress("a/b", "Q4_K_M")),
        ("hf:a/b@v1.0", HubAddress("a/b", "", "v1.0")),
        ("hf:a/b:q8_0@refs/pr/3", HubAddress("a/b", "q8_0", "refs/pr/3")),
        ("hf:a/b:sub/file-00001-of-00002.gguf", HubAddress("a/b", "sub/file-00001-of-00002.gguf")),
        ("hf:a/b@main", HubAddress("a/b")),
        ("https://huggingface.co/a/b", HubAddress("a/b")),
        ("https://huggingface.co/a/b/", HubAddress("a/b")),
        ("https://huggingface.co/a/b/tree/main", HubAddress("a/b")),
        ("https://huggingface.co/a/b/blob/main/c.Q4_0.gguf", HubAddress("a/b", "c.Q4_0.gguf")),
        ("https://huggingface.co/a/b/resolve/v2/c.gguf?download=true", HubAddress("a/b", "c.gguf", "v2")),
        ("hf.co/a/b:Q4_K_M", HubAddress("a/b", "Q4_K_M")),
    ],
)
def test_addresses_are_read_as_people_write_them(written: str, expected: HubAddress) -> None:
    assert HubAddress.is_one(written)
    assert HubAddress.parse(written) == expected
    assert HubAddress.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "written", ["hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a/b:", "hf:a b/c", "hf:a/b@"]
)
def test_what_is_no_address_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="must be hf:OWNER/NAME"):
        HubAddress.parse(written)


@pytest.mark.parametrize("written", ["models/llama", "C:\\models", "hf/a/b", "./hf:a", "/hf.co"])
def test_paths_are_no_addresses(written: str) -> None:
    assert not HubAddress.is_one(written)


def test_each_address_has_a_folder_of_its_own() -> None:
    written = (
        "a/b",
        "a/b:q4_0",
        "a/b:x/y",
        "a/b:x-y",
        "a/b:x--y",
        "a/b@x",
        "a/b@y",
        "a/b:q4_0@x",
        f"a/{'b' * 96}",
    )
    names = {HubAddress.parse(f"hf:{one}").folder_name for one in written}
    assert len(names) == len(written)
    assert all(re.fullmatch(r"[a-z0-9._-]{1,130}", name) for name in names)
    folder = converted_folder(Path("/cache"), HubAddress.parse(f"hf:{REPOSITORY}:Q4_K_M"), Precision.INT4, 3)
    assert folder == Path("/cache/models/bartowski--llama-3.2-3b-instruct-gguf--q4_k_m-int4-v3")


def chosen(
    selector: str, names: tuple[str, ...] = GGUFS, contents: dict[str, object] | None = None
) -> Choice:
    def read(name: str) -> bytes:
        return json.dumps((contents or {})[name]).encode()

    return choose(HubAddress(REPOSITORY, selector), names, read)


@pytest.mark.parametrize(
    ("selector", "kind"),
    [
        ("Q4_K_M", "Q4_K_M"),
        ("q4_k_m", "Q4_K_M"),
        ("Q4-K-M", "Q4_K_M"),
        ("q4km", "Q4_K_M"),
        ("iq4_xs", "IQ4_XS"),
        ("F16", "f16"),
        ("fp16", "f16"),
        ("Q6_K", "Q6_K"),
        (f"{NAME}-Q5_K_M.gguf", "Q5_K_M"),
        (f"{NAME.lower()}-q5_k_m.gguf", "Q5_K_M"),
        ("", "Q4_K_M"),
    ],
)
def test_a_gguf_file_is_chosen_by_what_people_write(selector: str, kind: str) -> None:
    assert chosen(selector) == Choice((), (f"{NAME}-{kind}.gguf",), f"{NAME}-{kind}.gguf")


def test_parts_of_one_model_belong_together_and_the_first_is_opened() -> None:
    parts = tuple(f"Q8_0/{NAME}-Q8_0-{n:05}-of-00003.gguf" for n in (1, 2, 3))
    names = (*reversed(parts), f"{NAME}-Q4_0.gguf")
    assert chosen("q8_0", names) == Choice((), parts, parts[0])
    assert chosen(parts[1].rpartition("/")[2], names) == Choice((), parts, parts[0])
    with pytest.raises(ModelFormatError, match=r"lacks parts of .*: there are 2 of 3"):
        chosen("Q8_0", parts[:2])


@pytest.mark.parametrize(
    ("selector", "names", "sentence"),
    [
        ("Q1_0", GGUFS, "has no Q1_0. There are F16, IQ4_XS, Q2_K, Q3_K_M, Q4_0"),
        ("Q4_0", ("a-Q4_0.gguf", "b-Q4_0.gguf"), "has several such files: name one of them"),
        ("", ("a-Q3_K_M.gguf", "a-Q5_K_M.gguf"), "has none of the usual kinds. There are Q3_K_M, Q5_K_M"),
        ("Q4_0", ("config.json", "model.safetensors"), "has no GGUF files. Leave :Q4_0 out"),
        ("mmproj", GGUFS, "has no mmproj"),
        ("", ("README.md",), "neither GGUF files nor config.json"),
        ("", ("config.json", "pytorch_model.bin"), "only pytorch_model.bin, a pickle that may run any code"),
        ("", ("config.json", "model.safetensors.index.json"), "has a damaged model.safetensors.index.json"),
    ],
)
def test_what_cannot_be_chosen_is_said(selector: str, names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ModelFormatError, match=re.escape(sentence)):
        chosen(selector, names, {"model.safetensors.index.json": []})


def test_a_folder_is_chosen_by_its_index_and_never_with_pickles() -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": shards[1], "b": shards[0]}}
    names = (
        *("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json", *shards),
        *(
            "pytorch_model-00001-of-00002.bin",
            "consolidated.safetensors",
            "README.md",
            "original/tokenizer.model",
        ),
    )
    choice = chosen("", names, {"model.safetensors.index.json": index})
    assert choice.weights == shards
    assert set(choice.descriptions) == set(names[:4])
    assert choice.opened == "config.json"


@pytest.mark.parametrize("name", ["../../evil.safetensors", "model-3.safetensors"])
def test_an_index_that_leads_elsewhere_is_refused(name: str) -> None:
    index = {"weight_map": {"a": name}}
    names = ("config.json", "model.safetensors.index.json", "../../evil.safetensors")
    with pytest.raises(ModelFormatError, match="lacks"):
        chosen("", names, {"model.safetensors.index.json": index})


def test_an_adapter_alone_names_its_model_and_the_command() -> None:
    with pytest.raises(ModelFormatError) as caught:
        chosen(
            "",
            ("adapter_config.json", "adapter_model.safetensors"),
            {"adapter_config.json": {"base_model_name_or_path": "meta-llama/Llama-3.2-3B-Instruct"}},
        )
    command = f"python -m engine pull hf:meta-llama/Llama-3.2-3B-Instruct --adapter hf:{REPOSITORY}"
    assert str(caught.value).endswith(command)
