"""The engine's command line: `python -m engine`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from engine.commands import bench, complete, convert, inspect, models, pull, serve, tokens
from engine.errors import EngineError

_ENDED_BY_READER = 141
"""What a shell reports of a program that wrote to nobody: 128 and the number of SIGPIPE."""
_NOTHING_LEFT = "stopped; nothing is left behind."
_STOPPED = {pull.pull: "stopped; the download so far is kept, and the same command continues it."}
_COMMANDS = (bench, complete, convert, inspect, models, pull, serve, tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status; expected failures are one sentence on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = build_parser().parse_args(given or ["--help"])
    try:
        status: int = parsed.act(parsed)
        sys.stdout.flush()
    except EngineError as error:
        print(f"llamacord: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"llamacord: {_STOPPED.get(parsed.act, _NOTHING_LEFT)}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output, as `head` does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _ENDED_BY_READER
    return status


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `act`, which runs it."""
    parser = argparse.ArgumentParser(
        prog="python -m engine", description="Get, convert, inspect, measure and serve models."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
