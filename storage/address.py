"""Where a database is: a file of SQLite, or the address of a PostgreSQL server. Opens neither."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """`postgresql://user:password@host:port/name`, in any form that libpq takes.

    What is left out comes from libpq's own variables and files (PGPASSWORD, PGPASSFILE, PGSSLMODE …). As a
    text it has no password.
    """

    url: str = field(repr=False)

    @staticmethod
    def is_one(written: str) -> bool:
        """Tell whether this is meant to be such an address."""
        return re.match(r"postgres(ql)?:", written, re.IGNORECASE) is not None

    @classmethod
    def parse(cls, written: str) -> PostgresAddress:
        """Return the address. Raises `ValueError`, which says what is allowed."""
        try:
            parts = urlsplit(written)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("postgresql", "postgres") or not written.startswith(f"{parts.scheme}://"):
            raise ValueError("must look like postgresql://user:password@host/name")
        if not parts.path.strip("/"):
            raise ValueError("must end with the name of the database: postgresql://user:password@host/name")
        return cls(written)

    def __str__(self) -> str:
        return without_password(self.url)


Location = Path | PostgresAddress


def location(written: str) -> Location:
    """Return what a text names. Raises `ValueError`."""
    return PostgresAddress.parse(written) if PostgresAddress.is_one(written) else Path(written)


def without_password(written: str) -> str:
    """Return an address, or something that looks like one, with its passwords left out."""
    shown = re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1@", written)
    return re.sub(r"([?&](?:ssl)?password)=[^&\s]*", r"\1=…", shown, flags=re.IGNORECASE)
