"""The engine's own commands, a file each: how it is called, what it does, what it prints."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from engine.text.chat_choice import format_names

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = argparse._SubParsersAction


def add_chat_template(command: argparse.ArgumentParser) -> None:
    """Add the argument that says how a model chats, where it does not say so itself."""
    command.add_argument(
        "--chat-template",
        "--chat-format",
        dest="chat_template",
        default="auto",
        metavar="NAME|FILE",
        help=f"how the model was trained to chat: auto (the default) is what it says itself; "
        f"{', '.join(format_names())}; or a file with a Jinja template",
    )
