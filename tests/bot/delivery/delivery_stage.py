"""A delivery on a stage: virtual time, and a fake Discord that fails, hangs and dawdles as it is told."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bot.delivery.delivery import Delivery
from bot.delivery.outbox import Buttons, OutboxGoneError

T = TypeVar("T")
INTERVAL_S = 1.2
"""Between two edits of one message."""
WORDS = " ".join(f"word{n}" for n in range(2000))


class VirtualSelector(selectors.SelectSelector):
    """Does not wait: it moves its own clock on instead."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and nothing will ever happen"
        self.now_s += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes at once."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now_s() -> float:
    return asyncio.get_running_loop().time()


@dataclass(frozen=True)
class Call:
    at_s: float
    verb: str
    discord_id: int
    content: str = ""
    buttons: Buttons = Buttons.NONE


@dataclass
class FakeDiscord:
    """Keeps messages as Discord does, and fails, hangs or takes its time when told to."""

    existing: Sequence[int] = ()
    latency_s: float = 0.05
    calls: list[Call] = field(default_factory=list)
    failures: list[BaseException | float] = field(default_factory=list)
    """For the next calls: what each raises, or how many seconds it takes."""

    def __post_init__(self) -> None:
        self.messages = dict.fromkeys(self.existing, ("old text", Buttons.REGENERATE))
        self.attachments: dict[int, str] = {}
        self.num_in_flight = 0

    async def send(self, content: str, *, buttons: Buttons, attachment: str = "") -> int:
        discord_id = 100 + sum(call.verb == "send" for call in self.calls)
        await self._take("send", discord_id, content, buttons)
        self.messages[discord_id] = (content, buttons)
        self.attachments[discord_id] = attachment
        return discord_id

    async def edit(self, discord_id: int, content: str, *, buttons: Buttons, attachment: str = "") -> None:
        await self._take("edit", discord_id, content, buttons)
        self._check(discord_id)
        self.messages[discord_id] = (content, buttons)
        self.attachments[discord_id] = attachment

    async def delete(self, discord_id: int) -> None:
        await self._take("delete", discord_id)
        self._check(discord_id)
        del self.messages[discord_id]

    def _check(self, discord_id: int) -> None:
        if discord_id not in self.messages:
            raise OutboxGoneError

    async def _take(
        self, verb: str, discord_id: int, content: str = "", buttons: Buttons = Buttons.NONE
    ) -> None:
        self.calls.append(Call(now_s(), verb, discord_id, content, buttons))
        failure = self.failures.pop(0) if self.failures else self.latency_s
        assert self.num_in_flight == 0, "never two requests at once"
        assert 0 < len(content) <= 2000 or verb == "delete"
        self.num_in_flight += 1
        try:
            if isinstance(failure, BaseException):
                raise failure
            await asyncio.sleep(failure)
        finally:
            self.num_in_flight -= 1

    @property
    def contents(self) -> list[str]:
        return [content for content, _ in self.messages.values()]

    @property
    def buttons(self) -> list[Buttons]:
        return [buttons for _, buttons in self.messages.values()]

    def times_of(self, discord_id: int) -> list[float]:
        return [call.at_s for call in self.calls if call.discord_id == discord_id and call.verb != "delete"]


@dataclass
class Stage:
    """A delivery and the Discord it writes to."""

    discord: FakeDiscord
    parts: dict[int, int] = field(default_factory=dict)
    max_parts: int = 50
    gone: list[int] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.delivery = Delivery(
            self.discord,
            answer_id=7,
            on_part=self.record,
            on_gone=self.forget,
            on_text=self.tell,
            min_interval_s=INTERVAL_S,
            existing_parts=self.discord.existing,
            max_parts=self.max_parts,
        )

    async def record(self, position: int, discord_id: int) -> None:
        self.parts[position] = discord_id

    async def forget(self, discord_id: int) -> None:
        self.gone.append(discord_id)

    async def tell(self, text: str) -> None:
        self.told.append(text)

    async def stream(self, text: str, *, num_steps: int, interval_s: float = 0.1) -> None:
        for step in range(1, num_steps + 1):
            self.delivery.update(text[: len(text) * step // num_steps])
            await asyncio.sleep(interval_s)


def play(
    scene: Callable[[Stage], Coroutine[Any, Any, T]],
    *,
    existing: Sequence[int] = (),
    failures: Sequence[BaseException | float] = (),
    latency_s: float = 0.05,
    max_parts: int = 50,
) -> tuple[T, Stage]:
    """Run `scene` in virtual time; at its end nothing of the delivery may be left running."""

    async def main() -> tuple[T, Stage]:
        stage = Stage(FakeDiscord(existing, latency_s, failures=list(failures)), max_parts=max_parts)
        result = await scene(stage)
        await stage.delivery.close()
        await stage.delivery.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result, stage

    return in_virtual_time(main())
