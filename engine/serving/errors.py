"""What a client is told when it gets no answer: a status, and an error as OpenAI's API words one.

ApiError is raised by whatever reads or carries out a request, and ends it. Every message is a sentence.
"""

from __future__ import annotations

from typing import Any

from engine.errors import (
    EngineError,
    EngineUnavailableError,
    InvalidParameterError,
    NoChatFormatError,
    NoRoomError,
    PromptError,
    PromptTooLongError,
    TooManyWaitingError,
    UnsafePromptError,
)

UNAVAILABLE_S = 5
"""When to ask again where nobody can know: a model is loaded anew in seconds, and others may be there."""
_UNREAD = (408, 413)
"""Where the rest of a body is not waited for."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """A request that is refused or failed. `retry_after_s`: when asking again is worth it, if it ever is."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """Return the error as JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in _UNREAD:
            headers["Connection"] = "close"
        return headers


def too_long(num_tokens: int | None, context_length: int, param: str) -> ApiError:
    """Return the error of a prompt that leaves no room for an answer; None tokens: nobody counted."""
    has = f"your prompt has {num_tokens}" if num_tokens is not None else "your prompt has more"
    return ApiError(
        400,
        f"This model's maximum context length is {context_length} tokens, and {has}. Shorten it.",
        code="context_length_exceeded",
        param=param,
    )


def refusal(error: EngineError, *, retry_after_s: int = UNAVAILABLE_S) -> ApiError:
    """Return what a client is told of an error of the engine."""
    message = str(error)
    match error:
        case PromptTooLongError():
            return too_long(error.num_tokens, error.max_tokens + 1, "prompt")
        case UnsafePromptError():
            return ApiError(400, message, code="unsafe_prompt", param="messages")
        case NoChatFormatError():
            return ApiError(400, f"{message} Or ask it with /v1/completions.", code="no_chat_format")
        case PromptError() | InvalidParameterError():
            return ApiError(400, message)
        case NoRoomError() | TooManyWaitingError():
            message = "Too many requests are waiting already. Try again later."
            return ApiError(429, message, code="too_many_waiting", retry_after_s=retry_after_s)
        case EngineUnavailableError():
            return ApiError(503, message, code="unavailable", retry_after_s=retry_after_s)
    return ApiError(500, message, code="generation_failed")
