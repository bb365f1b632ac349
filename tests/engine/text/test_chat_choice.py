"""A format of our own is taken only where the template writes the same; others have names or files."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.convert.converter import open_source
from engine.describing.manifest import ChatSpec
from engine.errors import ModelFormatError
from engine.text.chat_choice import classic_templates, detect_chat, format_names, named_chat
from engine.text.prompt import make_chat_format
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.types import META_SYSTEM_PROMPT, ChatMessage
from tests.engine import chat_templates
from tests.engine.prompt_cases import PromptModel
from tests.engine.tiny_hf import TinyHuggingFace
from tests.engine.tiny_model import tiny_config
from tests.engine.tokenizer_kinds import KINDS

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
CHATML = chat_templates.CHATML
WITH_DEFAULT = (
    "{%- if messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\n" + DEFAULT + "<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if tools %}# Tools{%- endif %}{{- '<|im_start|>assistant\\n' }}"
)
LLAMA_2 = chat_templates.LLAMA_2
METAS = LLAMA_2.replace(
    "said, told = messages, ''", "said, told = messages, '<<SYS>>\\n' + meta + '\\n<</SYS>>\\n\\n'"
)
OF_THEIR_OWN = METAS.replace("+ meta +", "+ 'You are Vigogne, a helpful assistant.' +")
META = "{% set meta = '" + META_SYSTEM_PROMPT.replace("'", "\\'").replace("\n", "\\n") + "' %}"
SEPARATED = CHATML.replace("+ '\n' + message", "+ '<|im_sep|>' + message").replace(
    "assistant\n", "assistant<|im_sep|>"
)
BARE_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for message in messages if message.role != 'system' %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
SPACED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content | trim "
    "+ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


@pytest.mark.parametrize(
    ("template", "kind", "default"),
    [
        (CHATML, "chatml", ""),
        (WITH_DEFAULT, "chatml", DEFAULT),
        (LLAMA_2, "llama-2", META_SYSTEM_PROMPT),
        (META + METAS, "llama-2", META_SYSTEM_PROMPT),
        (OF_THEIR_OWN, "jinja", ""),
        (SEPARATED, "jinja", ""),
        (BARE_SYSTEM, "jinja", ""),
        (SPACED, "jinja", ""),
        ("{{ bos_token }}" + CHATML, "jinja", ""),
        (
            CHATML.replace("{{ '<|im", "{{ '' if not message.content and loop.first else '<|im", 1),
            "jinja",
            "",
        ),
        (LLAMA_2.replace("text.strip()", "text"), "jinja", ""),
        (LLAMA_2.replace("+ ' ' + eos_token", "+ eos_token"), "jinja", ""),
        (chat_templates.THINKING, "jinja", ""),
        (WITH_DEFAULT.replace(DEFAULT, "Today is ' + strftime_now('%Y') + '."), "jinja", ""),
        (CHATML.replace("message['content']", "message['content'].replace('\n\n', '\n')"), "jinja", ""),
        ("{% for", "jinja", ""),
        ("[INST] {{ messages[0].content }} <<SYS>>{{ raise_exception('never') }}", "jinja", ""),
    ],
)
def test_the_template_decides(template: str, kind: str, default: str) -> None:
    chat = detect_chat(template, TOKENS)
    assert (chat.format, chat.default_system_prompt) == (kind, default)
    assert chat.template == (template if kind == "jinja" else "")


def test_without_its_tokens_or_with_greedy_ones_chatml_is_a_template() -> None:
    assert detect_chat(CHATML, TOKENS, {"<|im_end|>"}).format == "jinja"
    assert detect_chat(CHATML, TOKENS, is_only_text=False).format == "jinja"


@pytest.mark.parametrize(
    ("template", "switch"),
    [
        (chat_templates.THINKING, ""),
        (
            chat_templates.THINKING + "{% if enable_thinking is false %}<think>\n\n</think>{% endif %}",
            "enable_thinking",
        ),
        (chat_templates.THINKING + "{% if thinking %}Think.{% endif %}", "thinking"),
        (chat_templates.THINKING + "{# enable_thinking #}", ""),
        (chat_templates.THINKING + "{% if not enable_thinking %}{{ raise_exception('no') }}{% endif %}", ""),
    ],
)
def test_whether_thinking_can_be_switched_off_is_tried(template: str, switch: str) -> None:
    chat = detect_chat(template, TOKENS)
    assert (chat.reasoning, chat.thinking_switch) == (("<think>", "</think>"), switch)


def opened(
    folder: Path, kind: str, control: tuple[str, ...], chat: ChatSpec | None
) -> tuple[ChatSpec, Tokenizer]:
    """Open a folder with a tokenizer of this kind and no template, to be used with `chat`."""
    library = KINDS[kind].tokenizer(control)
    model = TinyHuggingFace(tiny_config(vocab_size=library.get_vocab_size()))
    model.files = KINDS[kind].folder("", control)
    model.config |= {"bos_token_id": None, "eos_token_id": library.token_to_id(KINDS[kind].eos_token)}
    source = open_source(model.save(folder / "source"), chat=chat)
    return source.chat, load_tokenizer(folder, source.save_tokenizer(folder))


CLASSICS = {
    "vicuna": ("llama-2", (), "Be brief. USER: Hi ASSISTANT: Yes</s>USER: So? ASSISTANT:"),
    "alpaca": (
        "llama-2",
        (),
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nYes</s>\n\n"
        "### Instruction:\nSo?\n\n### Response:\n",
    ),
    "zephyr": (
        "llama-2",
        (),
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nYes</s>\n"
        "<|user|>\nSo?</s>\n<|assistant|>\n",
    ),
    "mistral-v1": ("llama-2", (), "<s>[INST] Be brief.\n\nHi [/INST] Yes</s>[INST] So? [/INST]"),
    "mistral-v3": (
        "mistral",
        ("[INST]", "[/INST]"),
        "<s>[INST] Be brief.\n\nHi[/INST] Yes</s>[INST] So?[/INST]",
    ),
    "mistral-tekken": (
        "tekken",
        ("[INST]", "[/INST]"),
        "<s>[INST]Be brief.\n\nHi[/INST]Yes</s>[INST]So?[/INST]",
    ),
    "llama-3": (
        "llama-3",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSo?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": (
        "gemma",
        ("<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n"
        "<start_of_turn>user\nSo?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "phi-3": (
        "phi-3",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Yes<|end|><|user|>So?<|end|><|assistant|>",
    ),
}
DIALOG = [
    ChatMessage("system", "Be brief."),
    ChatMessage("user", "Hi"),
    ChatMessage("assistant", "Yes"),
    ChatMessage("user", "So?"),
]


def test_each_classic_is_tried() -> None:
    assert set(CLASSICS) == set(classic_templates())
    assert set(format_names()) == {"llama-2", "chatml", "none", *CLASSICS}


@pytest.mark.parametrize("name", CLASSICS)
def test_a_classic_format_has_a_name(tmp_path: Path, name: str) -> None:
    kind, control, expected = CLASSICS[name]
    chat, tokenizer = opened(tmp_path, kind, control, named_chat(name))
    eos = tokenizer.special_ids[KINDS[kind].eos_token]
    chat_format = make_chat_format(PromptModel(chat, 1, eos), tokenizer)
    assert chat_format is not None
    written = {token: text for text, token in tokenizer.special_ids.items()}
    said, run = "", b""
    for token in chat_format.encode(DIALOG):
        if token in written:
            said, run = said + run.decode() + written[token], b""
        elif not run and token in tokenizer.opening_space_ids:
            run = tokenizer.token_bytes[token].removeprefix(b" " if kind != "mistral" or not said else b"")
        else:
            run += tokenizer.token_bytes[token]
    assert said + run.decode() == expected


def test_a_format_is_refused_where_the_model_lacks_its_tokens(tmp_path: Path) -> None:
    for index, name in enumerate(("llama-3", "gemma", "phi-3", "mistral-v3", "mistral-tekken", "chatml")):
        with pytest.raises(ModelFormatError, match=f"which the chat format {name} needs"):
            opened(tmp_path / str(index), "llama-2", (), named_chat(name))


def test_a_template_comes_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for message in messages %}{{ message.content }}!{% endfor %}")
    chat, tokenizer = opened(tmp_path, "gpt-2", (), named_chat(str(path)))
    chat_format = make_chat_format(PromptModel(chat, 0, 0), tokenizer)
    assert chat_format is not None
    assert chat_format.encode([ChatMessage("user", "Hi")]) == tokenizer.encode("Hi!")
    path.write_text(CHATML)
    chat, _ = opened(tmp_path / "again", "qwen2", ("<|im_start|>", "<|im_end|>"), named_chat(str(path)))
    assert chat.format == "chatml"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_file_that_is_no_template_is_said_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"mine\.jinja (is neither|is empty|cannot be read)"):
        named_chat(str(path))


def test_no_choice_is_the_models_own() -> None:
    assert (named_chat(""), named_chat("auto")) == (None, None)
    assert named_chat("none") == ChatSpec(None)
