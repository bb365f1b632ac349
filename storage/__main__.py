"""`python -m storage copy FROM TO`: moves everything from one database to another."""

from __future__ import annotations

import argparse
import asyncio
import sys

from storage.address import Location, location
from storage.copying import copy
from storage.errors import StorageError


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m storage", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "copy",
        help="copy a database into an empty one, and compare them",
        description="Copies everything, then compares both. Stop the bot first. If it is interrupted, run the"
        " same command again to continue.",
    )
    for name in ("from", "to"):
        command.add_argument(
            name, type=_location, help="an SQLite file, or postgresql://user:password@host/name"
        )
    given = vars(parser.parse_args(arguments))
    return _copy(given["from"], given["to"])


def _copy(source: Location, target: Location) -> int:
    try:
        copied = asyncio.run(copy(source, target, lambda line: print(line, flush=True)))
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to continue.", file=sys.stderr)
        return 130
    for table, num_rows in copied.num_rows.items():
        print(f"  {num_rows:>10,}  {table}")
    if copied.num_replaced:
        plural = "" if copied.num_replaced == 1 else "s"
        print(
            f"Replaced null characters with \N{REPLACEMENT CHARACTER} in {copied.num_replaced} text{plural}."
        )
    print(f"Done: both are the same. Set DATABASE to {target} and start the bot.")
    return 0


def _location(written: str) -> Location:
    try:
        return location(written)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    raise SystemExit(main())
