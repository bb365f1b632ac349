"""Bodies of requests: how much is read of one and of all, and for which model it is meant.

Knows nothing of what is in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from engine.serving.errors import ApiError
from engine.serving.requests import ServedEngine
from engine.serving.service import Service

FINGERPRINT = "x-fingerprint"
BODY_TIMEOUT_S = 30.0
"""How long a body may take to arrive."""
MAX_BODIES_BYTES = 128 * 2**20
"""Of all bodies that arrive or are read at a time."""
Understood = TypeVar("Understood")


async def understood(
    service: Service, request: Request, read: Callable[[bytes, ServedEngine], Understood]
) -> Understood:
    """Return what `read` makes of a body of JSON, and keep nothing of that. Raises `ApiError` and others."""
    most = service.settings.max_body_bytes
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send JSON, with the header Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Send the body as it is, without Content-Encoding.")
    too_large = ApiError(413, f"The body is too large: at most {most} bytes are read.", code="too_large")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                service.num_body_bytes += len(chunk)
                if len(body) > most:
                    raise too_large
                if service.num_body_bytes > MAX_BODIES_BYTES:
                    raise ApiError(
                        429, "Too much is being sent. Try again.", code="too_many", retry_after_s=1
                    )
        _check_fingerprint(service, request)
        return await asyncio.to_thread(read, bytes(body), service.engine)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_TIMEOUT_S:g} seconds.") from None
    finally:
        service.num_body_bytes -= len(body)


def _check_fingerprint(service: Service, request: Request) -> None:
    wanted = request.headers.get(FINGERPRINT)
    if wanted is not None and wanted != service.fingerprint:
        raise ApiError(
            409, "Another model answers here than the one you ask for.", code="fingerprint_mismatch"
        )
