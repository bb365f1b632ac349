"""What of a dialog is kept: the same as by encoding all of it and bisecting, at the cost of what is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.describing.manifest import ChatSpec
from engine.errors import PromptTooLongError, UnsafePromptError
from engine.text.jinja_format import JinjaFormat
from engine.text.prompt import ChatFormat, ChatMLFormat, Llama2Format, fit_prompt
from engine.text.tokenizer import RememberingTokenizer, Strips, Tokenizer
from engine.types import ChatMessage, Prompt
from tests.engine import chat_templates
from tests.engine.fakes import tiny_bpe
from tests.engine.text.test_prompt import PIECES, SPACES, TIDY, dialogs
from tests.engine.tiny_sentencepiece import NEEDS_LLAMA2, llama2_tokenizer, tiny_sentencepiece

MAKERS: dict[str, Callable[[], tuple[Tokenizer, Callable[[Tokenizer], ChatFormat]]]] = {
    "chatml": lambda: (tiny_bpe(), lambda tokenizer: ChatMLFormat(tokenizer, {2})),
    "llama-2, tiny": lambda: (tiny_sentencepiece(), lambda tokenizer: Llama2Format(tokenizer, 1, 2)),
    "llama-2": lambda: (llama2_tokenizer(), lambda tokenizer: Llama2Format(tokenizer, 1, 2)),
    **{
        f"template {name}": lambda name=name: (  # type: ignore[misc]
            tiny_bpe(),
            lambda tokenizer: JinjaFormat(
                ChatSpec("jinja", "", getattr(chat_templates, name)), tokenizer, 0, 2
            ),
        )
        for name in ("CHATML", "TRIMMING", "THINKING", "WITHOUT_SYSTEM")
    },
}
PLAIN = ["chatml", "llama-2, tiny", pytest.param("llama-2", marks=NEEDS_LLAMA2)]
TEMPLATES = ["template CHATML", "template TRIMMING", "template THINKING", "template WITHOUT_SYSTEM"]
SPACIOUS = st.lists(
    st.one_of(
        st.sampled_from([*PIECES, *SPACES]),
        st.builds(lambda space, num: space * num, st.sampled_from([" ", "\n", "\u2003"]), st.integers(1, 99)),
    ),
    max_size=5,
).map("".join)


def bisected(
    chat_format: ChatFormat, dialog: Sequence[ChatMessage], max_tokens: int, begun: Sequence[int] = ()
) -> Prompt:
    """Encode all of it, then ever other parts: how it was done before."""
    num_system = int(dialog[0].role == "system")
    system, messages = dialog[:num_system], dialog[num_system:]

    def encode_without(num_dropped_turns: int) -> Prompt:
        kept = messages[2 * num_dropped_turns :]
        ids = (*chat_format.encode([*system, *kept]), *begun)
        return Prompt(ids, 2 * num_dropped_turns, is_continued=bool(begun))

    prompt = encode_without(0)
    if len(prompt.ids) <= max_tokens:
        return prompt
    low, high = 1, len(messages) // 2
    prompt = encode_without(high)
    if len(prompt.ids) > max_tokens:
        raise PromptTooLongError(len(prompt.ids), max_tokens)
    while low < high:
        middle = (low + high) // 2
        candidate = encode_without(middle)
        if len(candidate.ids) <= max_tokens:
            prompt, high = candidate, middle
        else:
            low = middle + 1
    return prompt


def outcome(fit: Callable[[], Prompt]) -> Prompt | str:
    """Return the prompt, or what is wrong."""
    try:
        return fit()
    except PromptTooLongError as error:
        return str(error)


Pair = tuple[ChatFormat, ChatFormat, RememberingTokenizer]


def pair_of(name: str) -> Pair:
    """Return a format twice, the second time with a memory that is soon full."""
    tokenizer, make = MAKERS[name]()
    memory = RememberingTokenizer(tokenizer, max_bytes=4000)
    return make(tokenizer), make(memory), memory


@pytest.fixture(scope="module", params=PLAIN)
def plain(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


@pytest.fixture(scope="module", params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


@settings(deadline=None)
@given(
    dialog=dialogs(SPACIOUS), max_tokens=st.integers(-5, 500), begun=st.sampled_from([(), (7,), (5,) * 40])
)
@example(
    dialog=[
        ChatMessage("system", "s"),
        *(ChatMessage("user", "a"), ChatMessage("assistant", "b")),
        *(ChatMessage("user", "\n" * 99 + "c"), ChatMessage("assistant", "d")),
        ChatMessage("user", "e"),
    ],
    max_tokens=60,
    begun=(),
)
def test_what_is_kept_is_exactly_what_bisecting_gives(
    plain: Pair, dialog: list[ChatMessage], max_tokens: int, begun: tuple[int, ...]
) -> None:
    """Whatever the white space, which may make a dialog longer without a turn than with it."""
    old, new, _ = plain
    expected = outcome(lambda: bisected(old, dialog, max_tokens, begun))
    assert outcome(lambda: fit_prompt(new, dialog, max_tokens, begun)) == expected


@settings(deadline=None, max_examples=30)
@given(dialog=dialogs(TIDY), max_tokens=st.integers(0, 300), begun=st.sampled_from([(), (7,)]))
def test_a_template_keeps_exactly_what_bisecting_gives(
    template: Pair, dialog: list[ChatMessage], max_tokens: int, begun: tuple[int, ...]
) -> None:
    old, new, _ = template
    expected = outcome(lambda: bisected(old, dialog, max_tokens, begun))
    assert outcome(lambda: fit_prompt(new, dialog, max_tokens, begun)) == expected


class Counting:
    """A tokenizer that counts what it encodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    @property
    def special_ids(self) -> Mapping[str, int]:
        return self._tokenizer.special_ids

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    @property
    def token_bytes(self) -> list[bytes]:
        return self._tokenizer.token_bytes

    @property
    def opening_space_ids(self) -> frozenset[int]:
        return self._tokenizer.opening_space_ids

    @property
    def strips(self) -> Strips:
        return self._tokenizer.strips

    def encode(self, text: str) -> list[int]:
        self.texts.append(text)
        return self._tokenizer.encode(text)

    def encode_inside(self, text: str) -> list[int]:
        self.texts.append(text)
        return self._tokenizer.encode_inside(text)

    def num_characters(self) -> int:
        """Return how many there were since it was asked last."""
        num_characters = sum(map(len, self.texts))
        self.texts.clear()
        return num_characters


def long_dialog(num_turns: int, content: str = "hello Why? " * 20) -> list[ChatMessage]:
    """Return a dialog of different messages with a system message."""
    messages = [ChatMessage("system", "Be brief.")]
    for turn in range(num_turns):
        messages += [ChatMessage("user", f"{turn} {content}"), ChatMessage("assistant", f"{content} {turn}")]
    return [*messages, ChatMessage("user", "And now?")]


@pytest.mark.parametrize("name", ["chatml", "llama-2, tiny", "template TRIMMING"])
def test_it_costs_what_is_kept_and_a_next_time_only_what_is_new(name: str) -> None:
    tokenizer, make = MAKERS[name]()
    counting = Counting(tokenizer)
    chat_format = make(RememberingTokenizer(counting))
    dialog = long_dialog(400)
    turn = len(dialog[1].content) + len(dialog[2].content)
    max_tokens = len(chat_format.encode([dialog[0], *dialog[-21:]]))  # ten turns and the question
    counting.num_characters()
    chat_format = make(RememberingTokenizer(counting))
    for _ in range(3):  # a template's first guess is a rough one
        prompt = fit_prompt(chat_format, dialog, max_tokens)
    assert prompt.num_dropped == 2 * 390
    assert counting.num_characters() < 50 * turn
    dialog = [*dialog, ChatMessage("assistant", "Well."), ChatMessage("user", "And then?")]
    fit_prompt(chat_format, dialog, max_tokens)
    assert counting.num_characters() < 3 * turn


@pytest.mark.parametrize("num_kept", [1, 8, 64])
def test_a_template_is_rendered_a_few_times(num_kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, make = MAKERS["template TRIMMING"]()
    chat_format = make(tokenizer)
    assert isinstance(chat_format, JinjaFormat)
    dialog = long_dialog(300)
    max_tokens = len(chat_format.encode([dialog[0], *dialog[-2 * num_kept - 1 :]])) + 5
    fit_prompt(chat_format, dialog, max_tokens)
    rendered: list[int] = []
    render = chat_format._process.render

    def counted(dialogs: Sequence[Sequence[ChatMessage]], switches: Mapping[str, bool]) -> object:
        rendered.append(max(map(len, dialogs)))
        return render(dialogs, switches)

    monkeypatch.setattr(chat_format._process, "render", counted)
    assert fit_prompt(chat_format, dialog, max_tokens).num_dropped == 2 * (300 - num_kept)
    assert len(rendered) <= 3
    assert max(rendered) <= 2 * num_kept + 6


def test_tags_are_found_without_encoding_anything() -> None:
    counting = Counting(tiny_sentencepiece())
    chat_format = Llama2Format(counting, 1, 2)
    dialog = long_dialog(100)
    dialog[1] = ChatMessage("user", "What is [INST]?")
    with pytest.raises(UnsafePromptError):
        fit_prompt(chat_format, dialog, 100)
    assert [chat_format.is_safe(message.content) for message in dialog].count(False) == 1
    assert counting.num_characters() == 0


@pytest.mark.parametrize(
    ("name", "text", "is_safe"),
    [
        ("chatml", "<|im_end|>", True),
        ("llama-2, tiny", "a [/INST] b", False),
        ("llama-2, tiny", "[inst]", True),
        ("template TRIMMING", "<|im_end|>", True),
    ],
)
def test_what_a_format_takes(name: str, text: str, is_safe: bool) -> None:
    tokenizer, make = MAKERS[name]()
    assert make(tokenizer).is_safe(text) == is_safe


def test_a_template_is_asked_once_whether_it_takes_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    forming = JinjaFormat(ChatSpec("jinja", "", chat_templates.FORMING), tiny_bpe(), 0, 2)
    assert (forming.is_safe("<|im_#end|>"), forming.is_safe("<|im_end|> \ud83d")) == (False, True)
    monkeypatch.setattr(forming, "_process", None)
    assert (forming.is_safe("<|im_#end|>"), forming.is_safe("<|im_end|> \ud83d")) == (False, True)


@given(texts=st.lists(st.one_of(SPACIOUS, st.sampled_from(["a", "ab", "\ud83d"])), max_size=30))
def test_remembered_ids_are_those_of_the_tokenizer_and_are_nobodys_to_change(texts: list[str]) -> None:
    tokenizer = tiny_sentencepiece()
    memory = RememberingTokenizer(tokenizer, max_bytes=2000)
    for text in texts:
        ids = memory.encode(text)
        assert ids == tokenizer.encode(text)
        ids.append(-1)
        assert memory.encode_inside(text) == tokenizer.encode_inside(text)
        assert memory.encode(text) == tokenizer.encode(text)


def test_what_is_remembered_is_bounded_and_can_be_forgotten() -> None:
    counting = Counting(tiny_bpe())
    memory = RememberingTokenizer(counting, max_bytes=100_000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(memory.encode, [f"{number} {'x' * 1000}" for number in range(1000)]))
    assert 50_000 < memory._num_bytes <= 100_000
    assert memory._num_bytes == sum(map(memory._size, memory._known))
    memory.encode("x" * 200_000)
    assert memory._num_bytes <= 100_000
    memory.encode("again")
    counting.num_characters()
    memory.encode("again")
    assert counting.num_characters() == 0
    memory.forget()
    assert not memory._known
    memory.encode("again")
    assert counting.num_characters() == len("again")
