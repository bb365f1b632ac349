"""A tiny streaming bot to try the playground with: ten edits, Stop, commands."""

import asyncio
import re
import time
from typing import Self

import discord
from discord import app_commands

PAUSE_S = 0.1
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


class _Button(discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]], template=r"demo:(?P<what>\w+)"):
    def __init__(self, what: str) -> None:
        super().__init__(discord.ui.Button(label=what, custom_id=f"demo:{what}"))
        self.what = what

    @classmethod
    async def from_custom_id(
        cls,
        interaction: discord.Interaction,  # noqa: ARG003 - discord.py's signature
        item: discord.ui.Item[discord.ui.View],  # noqa: ARG003
        match: re.Match[str],
    ) -> Self:
        return cls(match["what"])

    async def callback(self, interaction: discord.Interaction) -> None:
        await interaction.response.defer()
        client, message = interaction.client, interaction.message
        assert isinstance(client, DemoClient)
        assert message is not None
        if self.what == "Stop":
            client.stopped.add(message.id)
        else:
            client.num_regenerated += 1
            client.begin(message)


class DemoClient(discord.Client):
    """Answers mentions and direct messages by counting to ten."""

    def __init__(self) -> None:
        super().__init__(
            intents=discord.Intents(guilds=True, guild_messages=True, dm_messages=True),
            allowed_mentions=discord.AllowedMentions.none(),
        )
        self.tree = app_commands.CommandTree(self)
        self.stopped: set[int] = set()
        self.heard: list[str] = []
        self.times: list[tuple[float, float]] = []  # real and in a thread, as the bot sees them
        self.errors: list[BaseException] = []
        self.num_regenerated = 0
        self.may_count_to = len(WORDS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._add_commands()

    def _add_commands(self) -> None:
        @self.tree.command(description="Say it back")
        async def echo(interaction: discord.Interaction, text: str) -> None:
            await interaction.response.send_message(f"echo: {text}", ephemeral=True)

        @self.tree.command(description="For moderators")
        @app_commands.default_permissions(manage_messages=True)
        async def reset(interaction: discord.Interaction) -> None:
            await interaction.response.send_message("reset")

        @self.tree.command(description="Never answers")
        async def silent(interaction: discord.Interaction) -> None:
            await asyncio.sleep(30)

        @self.tree.command(description="Asks Discord for something simcord does not know")
        async def strange(interaction: discord.Interaction) -> None:
            try:
                await self.http.request(discord.http.Route("GET", "/playground/unknown"))
            except discord.HTTPException as error:
                await interaction.response.send_message(f"status {error.status}")

    async def setup_hook(self) -> None:
        self.add_dynamic_items(_Button)
        await self.tree.sync()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await super().close()

    async def on_message(self, message: discord.Message) -> None:
        if message.author.bot or (message.guild and self.user not in message.mentions):
            return
        self.heard.append(message.content)
        self.begin(await message.reply("…", view=_view("Stop")))

    def begin(self, message: discord.Message) -> None:
        """Stream into a message of ours."""
        task = asyncio.create_task(self._count(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _count(self, message: discord.Message) -> None:
        self.stopped.discard(message.id)
        for number in range(1, len(WORDS) + 1):
            await asyncio.sleep(PAUSE_S)
            while number > self.may_count_to and message.id not in self.stopped:  # noqa: ASYNC110 - polled
                await asyncio.sleep(0.01)
            self.times.append((time.monotonic(), await asyncio.to_thread(time.monotonic)))
            text = " ".join(WORDS[:number])
            if message.id in self.stopped:
                await message.edit(content=f"{text} (stopped)", view=_view("Regenerate"))
                return
            await message.edit(content=text, view=_view("Stop" if number < len(WORDS) else "Regenerate"))


def _view(button: str) -> discord.ui.View:
    view = discord.ui.View(timeout=None)
    view.add_item(_Button(button))
    return view
