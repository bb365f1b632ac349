"""A PostgreSQL server of the tests' own, with a fresh database for whoever asks.

It is started when the first test needs it, listens on a socket in a temporary folder only, and keeps nothing.
Where there is no PostgreSQL, these tests are skipped, but not where LLAMACORD_NEEDS_POSTGRES is set.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.address import PostgresAddress

START_S = 60.0
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "autovacuum": "off",
    "jit": "off",
}


class PostgresServer:
    """One server. `folder` is empty, and short: the path of a socket has at most some hundred characters."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self._numbers = itertools.count()
        self._idle: list[PostgresAddress] = []
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            shutil.chown(folder, self._user)

    def make(self) -> None:
        """Make the server's files."""
        options = [
            "-U",
            "llamacord",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        ]
        command = [self._programs / "initdb", "-D", self._folder / "data", *options]
        self._started(command, stdout=subprocess.DEVNULL).communicate(timeout=START_S)

    def start(self) -> None:
        """Start it and wait until it lets us in."""
        settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        command = [self._programs / "postgres", "-D", self._folder / "data", "-k", self._folder, *settings]
        with (self._folder / "log").open("ab") as log:
            self._process = self._started(command, stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while not self._lets_in():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)

    def stop(self, *, is_crash: bool = False) -> None:
        """Stop it, or have it crash: its clients notice by their connections only."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if is_crash else signal.SIGINT)
            self._process.wait(START_S)
            self._process = None

    def address(self, name: str) -> PostgresAddress:
        """Return the address of a database."""
        return PostgresAddress(f"postgresql://llamacord@/{name}?host={self._folder}")

    def new_database(self, template: str | None = None) -> PostgresAddress:
        """Make a database, empty or as another one, and return its address."""
        name = f"test{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}" + ("" if template is None else f" TEMPLATE {template}"))
        return self.address(name)

    def migrated(self) -> PostgresAddress:
        """Return the address of a new database with our tables."""
        from storage.migrations import MIGRATIONS
        from storage.postgres.schema import prepare

        if not self.run("SELECT 1 FROM pg_database WHERE datname = 'ours'"):
            self.run("CREATE DATABASE ours")
            prepare(self.address("ours"), 5.0, MIGRATIONS)
        return self.new_database("ours")

    @contextlib.contextmanager
    def lent(self) -> Iterator[PostgresAddress]:
        """Lend a database with our tables and nothing in them; emptying one is quicker than making one."""
        address = self._idle.pop() if self._idle else self.migrated()
        yield address
        self.kill_connections(address)
        name = address.url.split("?")[0].rpartition("/")[2]
        tables = self.run(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'llamacord_schema'",
            name,
        )
        self.run(";".join(f"DELETE FROM {table}" for (table,) in tables), name)  # noqa: S608
        self.run("SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'", name)
        self._idle.append(address)

    def run(self, statement: str, name: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        import psycopg

        with psycopg.connect(self.address(name).url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def kill_connections(self, address: PostgresAddress, which: str = "true") -> int:
        """End connections to a database as an administrator would; return how many there were."""
        name = address.url.split("?")[0].rpartition("/")[2]
        rows = self.run(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND {which}"  # noqa: S608
        )
        return len(rows)

    def _lets_in(self) -> bool:
        command = [str(self._programs / "pg_isready"), "-q", "-h", str(self._folder)]
        return subprocess.run(command, check=False).returncode == 0  # noqa: S603

    def _started(self, command: list[Any], **options: Any) -> subprocess.Popen[bytes]:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        return subprocess.Popen(  # noqa: S603
            [str(word) for word in command],
            user=self._user,
            group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
            cwd=self._folder,
            env=environment,
            **options,
        )


def programs() -> Path | None:
    """Return the folder with the newest server's programs, None where there is none."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4].split(".")[0])
    )
    if folders:
        return folders[-1].parent
    found = shutil.which("postgres")
    return None if found is None else Path(found).resolve().parent


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return a running server."""
    folder = programs()
    if folder is None or not (folder / "initdb").exists():
        message = "needs PostgreSQL (on Debian: apt install postgresql)"
        if os.environ.get("LLAMACORD_NEEDS_POSTGRES"):
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="lc-pg-") as place:
        server = PostgresServer(folder, Path(place))
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()
