"""simcord's page made to run live: for several people in several channels, and never frozen.

With `live_simcord.py` it owns every private name of simcord that this project touches. Knows nothing of the
bot, nor of who is shown. simcord's page is frozen while an action runs; three things are changed here.

1. A background task publishes the open pages whenever something happened, at most four times a second,
   without reading every message anew each time, which took a third of a second.
2. `LivePreview` accepts an action that was made on a page published a moment ago.
3. Each person sits in several channels, and `read_typed` turns a typed `@Name` into a mention.
"""

import asyncio
import contextlib
import functools
import html
import json
import logging
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import simcord
from aiohttp import web
from simcord.preview import Preview, _messages, _queries, _snapshot
from simcord.preview._pages import _Page
from simcord.preview._server import PreviewServer

from bot.playground.live_simcord import LiveEnv

_PUBLISH_INTERVAL_S = 0.25
_NUM_REVISIONS = 40  # of a page, about ten seconds of streaming
_NUM_READ = 200  # messages whose markup is kept read, a few channels' last ones
_NUM_LISTED = 50  # messages in the page's list, as many as the channel shows

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seat:
    """A person in a channel: what the page's "Viewing as" offers."""

    key: str
    label: str
    person: simcord.MemberActor | simcord.UserHandle
    channel: simcord.ChannelHandle


class _LiveServer(PreviewServer):
    """The preview's server, with our name on the page and without the buttons that are for test authors."""

    _STYLE = "/playground.css"
    _STATIC_FILES: ClassVar[dict[str, str]] = {**PreviewServer._STATIC_FILES, _STYLE: "playground.css"}
    _CSS = (
        "#refresh, #capture-open, #inspector-toggle, #view-action-output, #back-activity, .brand-mark"
        " { display: none !important }\n"
        "#viewer-picker { max-width: 100%; width: auto }\n"
        "#channel-composer-input:focus-visible { outline: none }\n"
        "#channel-timeline { overflow-anchor: none }\n"  # or a full channel stops following its newest
    )

    def __init__(self, preview: Preview, title: str, port: int) -> None:
        super().__init__(preview, port)
        self._title = html.escape(title)

    async def _static(self, request: Any) -> Any:
        if request.path == self._STYLE:
            return web.Response(text=self._CSS, content_type="text/css", headers=self._SECURITY_HEADERS)
        response = await super()._static(request)
        if request.path == "/":
            response.text = (
                response.text.replace("SimCord Preview", f"{self._title} playground")
                .replace("<strong>SimCord</strong>", f"<strong>{self._title}</strong>")
                .replace("<small>Preview</small>", "<small>Playground</small>")
                .replace('class="preview-shell"', 'class="preview-shell messages-closed"')
                .replace("</head>", f'<link rel="stylesheet" href="{self._STYLE}"></head>')
            )
        return response


_room: ContextVar[simcord.ChannelHandle | None] = ContextVar("_room", default=None)


class LivePreview(Preview):
    """simcord's page for several people in several channels, and patient with a page a moment old."""

    def __init__(
        self,
        env: LiveEnv,
        seats: Sequence[Seat],
        *,
        title: str,
        timezone: str,
        read_typed: Callable[[str], str],
        port: int,
    ) -> None:
        self._seats = {seat.key: seat for seat in seats}
        self._rooms = {seat.channel.id: seat.channel for seat in seats}
        self._read_typed = read_typed
        self._changed = env.changed
        self._turn = asyncio.Lock()
        self._shown: dict[str, deque[tuple[int, dict[str, Any]]]] = {}
        super().__init__(
            env,
            seats[0].channel,
            tuple(seat.person for seat in seats),
            layout="channel",
            display="responsive",
            width=1100,
            height=800,
            locale="en-US",
            timezone=timezone,
            presentation_time=None,
            assets=None,
            port=port,
        )
        self._server = _LiveServer(self, title, port)

    @property
    def channel(self) -> simcord.ChannelHandle:
        """Return the channel that the action in hand is made in."""
        return _room.get() or self._first_room

    @channel.setter
    def channel(self, channel: simcord.ChannelHandle) -> None:
        self._first_room = channel

    def _initial_target(self, viewer: Any, channel_id: int) -> int | None:
        """Open at the newest message, as Discord does, not at the bot's last."""
        messages = self.env.backend.messages.get(channel_id, {})
        return max((key for key, message in messages.items() if message.visible_to(viewer.id)), default=None)

    def _open_page(self, viewer_id: Any = None, target_id: Any = None) -> _Page:
        newest = self._initial_target(self.viewers[0], self.channel.id)
        return super()._open_page(viewer_id, newest if target_id is None else target_id)

    def _viewer(self, viewer_id: Any) -> Any:
        seat = self._seats.get(str(viewer_id))
        return super()._viewer(viewer_id) if seat is None else seat.person

    async def keep_fresh(self) -> None:
        """Show every open page what happened, again and again until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            started = time.monotonic()
            try:
                self._publish_open_pages()
            except Exception:
                _logger.exception("The playground's page could not be updated")
            spent_s = time.monotonic() - started
            await asyncio.sleep(max(_PUBLISH_INTERVAL_S, 5 * spent_s))  # the loop is the bot's as well

    def _publish_open_pages(self) -> None:
        self._advance_presentation_time()
        for page in tuple(self._pages.values()):
            if page is not self._python and page.id in self._pages:
                self._publish(page, reason="refresh")
        for page_id in self._shown.keys() - self._pages.keys():
            del self._shown[page_id]

    def _publish(self, page: _Page, *, reason: Any = "action") -> None:
        super()._publish(page, reason=reason)
        snapshot = page.snapshot
        if len(snapshot.get("viewers", ())) == len(self._seats):
            for identity, seat in zip(snapshot["viewers"], self._seats.values(), strict=True):
                identity.update(id=seat.key, name=seat.label)
            snapshot["viewerId"] = self._seat_of(page).key
        shown = {key: message["components"] for key, message in snapshot.get("messages", {}).items()}
        self._shown.setdefault(page.id, deque(maxlen=_NUM_REVISIONS)).append((page.revision, shown))

    def _seat_of(self, page: _Page) -> Seat:
        return next(
            seat
            for seat in self._seats.values()
            if seat.person is page.viewer and seat.channel.id == page.channel_id
        )

    async def _action(self, context_id: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out what a person did, one action after the other, in the channel they did it in."""
        async with self._turn:
            page = self._get_page(context_id)
            left = page.channel_id
            if isinstance(body, Mapping):
                body = self._brought_up_to_date(page, body)
                seat = self._seats.get(str(body.get("viewer_id"))) if body.get("kind") == "viewer" else None
                page.channel_id = seat.channel.id if seat else left
            token = _room.set(self._rooms[page.channel_id])
            try:
                result = await super()._action(context_id, body)
            finally:
                _room.reset(token)
                self._changed.set()
            if result["rejected"]:
                page.channel_id = left
            return result

    def _brought_up_to_date(self, page: _Page, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the action as if made on the page's newest revision, with what was typed read.

        Between a browser's look and its click the bot may have edited something. That matters only where the
        clicked message's buttons are other ones now: a late Stop must not press Regenerate.
        """
        body = dict(body)
        revision = body.get("published_revision")
        if isinstance(revision, int) and revision < page.revision and self._same_controls(page, body):
            body["published_revision"] = page.revision
        if isinstance(content := body.get("content"), str):
            body["content"] = self._read_typed(content)
        return body

    def _same_controls(self, page: _Page, body: Mapping[str, Any]) -> bool:
        if body.get("kind") not in ("click", "select"):
            return True
        shown = dict(self._shown.get(page.id, ()))
        seen = shown.get(body["published_revision"], {}).get(str(body.get("target_id")))
        return seen is not None and seen == shown[page.revision].get(str(body.get("target_id")))


@contextlib.contextmanager
def cheap_pages() -> Iterator[None]:
    """Have simcord read a message's markup once, not at every look, and list the newest messages only."""
    messages: Any = _messages
    snapshot: Any = _snapshot
    read, navigate = messages.markdown_tokens, snapshot._message_navigation

    @functools.lru_cache(maxsize=_NUM_READ)
    def read_once(text: Any, profile: str, context: str) -> bytes:
        return pickle.dumps(read(text, profile, context=json.loads(context)))

    def read_cached(text: Any, profile: str = "message", *, context: Any = None) -> Any:
        return pickle.loads(read_once(text, profile, json.dumps(context)))  # noqa: S301 - our own, a fresh copy

    def navigate_newest(preview: Preview, page: _Page, visible: list[Any]) -> Any:
        return navigate(preview, page, visible[-_NUM_LISTED:])

    changes: list[tuple[Any, str, Any]] = [
        (messages, "markdown_tokens", read_cached),
        (_queries, "markdown_tokens", read_cached),
        (snapshot, "_message_navigation", navigate_newest),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in changes:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield
