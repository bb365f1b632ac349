"""How fast the first word comes in conversations that are far beyond the limit of their history.

    python -m benchmarks.long_conversation [--plot FILE.png] [--channels 1 8] [--pauses 0 10]
    python -m benchmarks.long_conversation --shape 1.1b --turns 30
    python -m benchmarks.long_conversation --shape 7b --turns 14 --limit 1024 --channels 1
    python -m benchmarks.long_conversation --work-ahead off

The whole service answers, with its storage in a temporary folder: questions of 20 to 100 words, answers of
at most 64 tokens, and a random pause before each question. Pauses are virtual: where nobody asks and nothing
is left to do ahead, the rest of them is skipped. A first word counts from the question until the answer's
first text is to be shown. "below" are the answers before the first stride, from a quarter of the limit on;
"at" are all after that. A shape has random weights, and a tokenizer whose words are characters.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import itertools
import random
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.common import default_model, print_table
from bot.conversation.jobs import Question
from bot.conversation.service import ChatService
from bot.conversation.views import Ending
from bot.parameters import ChatParameters, Guidance, GuidanceChoice
from engine.bench.figures import SHAPES
from engine.bench.random_model import write_random_model
from engine.describing.architecture import Precision
from engine.engine import Engine, EngineOptions
from engine.types import Completion, Usage
from storage.conversations import ConversationKind, ConversationRef, Conversations, MessageState
from storage.database import Database
from storage.settings import SettingsStore

NUM_TURNS = 60
MAX_NEW_TOKENS = 64
WORDS = (
    "the of and to in is that for it was on are as with they at be this have from or had by but some what",
    "there we can out other were all your when up use word how said an each she which do their time if will",
    "way about many then them would write like so these her long make thing see him two has look more day",
    "could go come did my sound no most number who over know water than call first people may down side been",
)
WORDS_OF_SHAPES = [chr(0x4E00 + number) for number in range(100, 1100)]
GOALS = {0.0: 2.5, 10.0: 1.3}
"""The median first word at the limit, over the one below it, by the mean pause in seconds."""
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer: how long its first word took, and how much of its prompt was kept."""

    number: int
    first_s: float
    num_prompt_tokens: int
    num_cached_tokens: int
    is_at_limit: bool

    @property
    def kept(self) -> float:
        """The share of the prompt whose KV was there."""
        return self.num_cached_tokens / self.num_prompt_tokens


class View:
    """An `AnswerView` that notes when the first text came."""

    is_lost = shows_thoughts = False
    part_ids: Sequence[int] = ()

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.ended = asyncio.Event()

    def opened(self, answer_id: int, parts: Sequence[int]) -> None: ...

    def waiting(self, place: int, *, for_others: bool) -> None: ...

    def working(self) -> None: ...

    def followed(self) -> None: ...

    def moved(self, from_id: int, to_id: int) -> None: ...

    def thinking(self, seconds: int) -> None: ...

    def update(self, text: str) -> None:  # noqa: ARG002 - when, not what
        if self.first_at is None:
            self.first_at = asyncio.get_running_loop().time()

    async def finish(self, ending: Ending) -> None:  # noqa: ARG002 - when, not how
        self.ended.set()


@dataclass
class Pauses:
    """Pauses of all channels; where all of them pause and nothing is left to do, time goes faster."""

    chat: ChatService
    num_channels: int
    skipped_s: float = 0.0
    due: list[float] = field(default_factory=list)

    async def wait(self, seconds: float) -> None:
        """Wait that long on the channels' own clock."""
        until = self._now() + seconds
        heapq.heappush(self.due, until)
        while self._now() < until:
            is_idle = len(self.due) == self.num_channels and self.chat.idle.is_done
            if is_idle and not (self.chat.num_running or self.chat.num_waiting or self.chat.num_unshown):
                self.skipped_s += max(0.0, self.due[0] - self._now())
            await asyncio.sleep(_LOOK_S)
        self.due.remove(until)
        heapq.heapify(self.due)

    def leave(self) -> None:
        """Take away a channel that is done."""
        self.num_channels -= 1

    def _now(self) -> float:
        return asyncio.get_running_loop().time() + self.skipped_s


class Talk:
    """The conversations of some channels, at once."""

    def __init__(
        self, chat: ChatService, num_channels: int, num_turns: int, pause_s: float, words: Sequence[str]
    ) -> None:
        self._chat = chat
        self._num_channels = num_channels
        self._num_turns = num_turns
        self._pause_s = pause_s
        self._words = words
        self._pauses = Pauses(chat, num_channels)
        self._ids = itertools.count(1)
        self._completions: list[Completion] = []
        self.turns: list[Turn] = []

    def answered(self, state: MessageState, completion: Completion | None) -> None:
        """Learn what an answer took."""
        if completion is None:
            raise RuntimeError(f"An answer ended as {state}.")
        self._completions.append(completion)

    async def run(self) -> None:
        """Let all of them talk to the end."""
        await asyncio.gather(*(self._talk(number) for number in range(self._num_channels)))

    async def _talk(self, channel: int) -> None:
        chance = random.Random(channel)
        ref = ConversationRef(1000 + channel, ConversationKind.CHANNEL, 1)
        for number in range(self._num_turns):
            if self._pause_s:
                await self._pauses.wait(chance.uniform(0.5, 1.5) * self._pause_s)
            text = " ".join(chance.choices(self._words, k=chance.randint(20, 100)))
            view, begun = View(), asyncio.get_running_loop().time()
            question = Question(ref, next(self._ids), channel + 1, f"P{channel}", text, datetime.now(UTC))
            answer_id = await self._chat.ask(question, view)
            await view.ended.wait()
            answer = await self._chat.conversations.find_answer(answer_id)
            if answer is None or view.first_at is None:
                raise RuntimeError("An answer has no text.")
            usage = self._take(answer.content)
            self.turns.append(
                Turn(
                    number,
                    view.first_at - begun,
                    usage.num_prompt_tokens,
                    usage.num_cached_tokens,
                    answer.view_from is not None,
                )
            )
        self._pauses.leave()

    def _take(self, content: str) -> Usage:
        """Return what the answer with this text took."""
        found = next((one for one in self._completions if one.text.strip() == content), self._completions[0])
        self._completions.remove(found)
        return found.usage


@contextlib.asynccontextmanager
async def _talking(
    engine: Engine, options: argparse.Namespace, num_channels: int, pause_s: float
) -> AsyncIterator[Talk]:
    with tempfile.TemporaryDirectory(prefix="llamacord-long-") as folder:
        async with await Database.open(Path(folder, "bot.sqlite3")) as database:
            defaults = ChatParameters(
                max_history_tokens=limit_of(engine, options), guidance=Guidance(GuidanceChoice.NONE)
            ).with_values({"max_new_tokens": MAX_NEW_TOKENS, "seed": 1})
            talk: Talk
            chat = ChatService(
                engine,
                Conversations(database),
                SettingsStore(database),
                defaults,
                may_work_ahead=(lambda: True) if options.work_ahead == "on" else None,
                on_answered=lambda state, completion: talk.answered(state, completion),
            )
            database.on_written = chat.note_change
            words = WORDS_OF_SHAPES if options.shape else " ".join(WORDS).split()
            talk = Talk(chat, num_channels, options.turns, pause_s, words)
            async with chat:
                yield talk


def limit_of(engine: Engine, options: argparse.Namespace) -> int:
    """Return the limit of the history, in tokens: as chosen, or three quarters of the context."""
    return int(options.limit or engine.info.context_length * 3 // 4)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of all lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def measure(folder: Path, options: argparse.Namespace) -> dict[tuple[int, float], list[Turn]]:
    """Return the turns of each number of channels and pause, with an engine of its own for each."""
    found = {}
    engine_options = EngineOptions(chat_format="llama-2" if options.shape else "")
    for num_channels, pause_s in itertools.product(options.channels, options.pauses):
        async with (
            await Engine.open(folder, engine_options) as engine,
            _talking(engine, options, num_channels, pause_s) as talk,
        ):
            await talk.run()
        found[num_channels, pause_s] = talk.turns
        print_rows(num_channels, pause_s, talk.turns, limit_of(engine, options))
    return found


def print_rows(num_channels: int, pause_s: float, turns: Sequence[Turn], limit: int) -> None:
    """Print a table of one run, and the share of kept tokens over time."""
    below = [t.first_s for t in turns if not t.is_at_limit and t.num_prompt_tokens > limit / 4]
    at = [t.first_s for t in turns if t.is_at_limit]
    rows = []
    for name, values in (("below the limit", below), ("at the limit", at)):
        if values:
            figures = statistics.median(values), percentile(values, 0.95), max(values)
            rows.append([name, str(len(values)), *(f"{value * 1e3:.0f} ms" for value in figures)])
    print_table(
        f"{num_channels} channel(s), pauses of {pause_s:g} s: first word",
        ["", "answers", "median", "95 %", "worst"],
        rows,
    )
    if below and at:
        ratio = statistics.median(at) / statistics.median(below)
        goal = GOALS.get(pause_s)
        print(f"at / below: {ratio:.2f}" + (f" (goal: at most {goal})" if goal else ""))
    print("share of kept tokens, by turn: " + " ".join(f"{share:.0%}" for share in kept_by_turn(turns)))


def kept_by_turn(turns: Sequence[Turn]) -> list[float]:
    """Return the share of the prompts' tokens that were kept, for each turn of all channels."""
    shares = []
    for number in range(max(turn.number for turn in turns) + 1):
        ones = [turn for turn in turns if turn.number == number]
        shares.append(sum(t.num_cached_tokens for t in ones) / sum(t.num_prompt_tokens for t in ones))
    return shares


def draw(found: dict[tuple[int, float], list[Turn]], file: Path) -> None:
    """Draw the share of kept tokens over the turns, a panel for each run. Needs Pillow."""
    from PIL import Image, ImageDraw

    width, height, margin = 900, 180, 40
    image = Image.new("RGB", (width, height * len(found)), "white")
    pen = ImageDraw.Draw(image)
    for row, ((num_channels, pause_s), turns) in enumerate(found.items()):
        top, shares = row * height, kept_by_turn(turns)
        left, right, bottom = margin, width - margin, top + height - margin
        pen.text((left, top + 8), f"kept tokens by turn: {num_channels} channel(s), {pause_s:g} s", "black")
        for share in (0.0, 0.5, 1.0):
            y = bottom - share * (height - 2 * margin)
            pen.line((left, y, right, y), "lightgray")
            pen.text((5, y - 6), f"{share:.0%}", "black")
        step = (right - left) / max(1, len(shares) - 1)
        line = [(left + at * step, bottom - share * (height - 2 * margin)) for at, share in enumerate(shares)]
        pen.line(line, "steelblue", 2)
        for at in (turn.number for turn in turns if turn.is_at_limit):
            pen.line((left + at * step, bottom + 3, left + at * step, bottom + 8), "darkorange")
        pen.text((left, bottom + 12), "orange: answers at the limit", "darkorange")
    image.save(file)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--pauses", type=float, nargs="+", default=[10.0, 0.0], help="mean, in seconds")
    parser.add_argument("--turns", type=int, default=NUM_TURNS)
    parser.add_argument("--limit", type=int, help="of the history, in tokens")
    parser.add_argument("--work-ahead", choices=["on", "off"], default="on")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights instead of the default model")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llamacord-shape-") as place:
        folder = default_model()
        if options.shape:
            folder = write_random_model(Path(place, options.shape), SHAPES[options.shape], Precision.INT4)
        found = asyncio.run(measure(folder, options))
    if options.plot is not None:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
