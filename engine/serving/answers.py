"""Answers as OpenAI's API words them, whole or in pieces. Pure.

A piece is made once for each delta of each answer, so all of it but the text is made before. What a model
thinks is worded apart, as `reasoning_content`.
"""

from __future__ import annotations

import json
from typing import Any

from engine.serving.requests import Asked
from engine.serving.thoughts import Parted, Thoughts
from engine.types import Completion, FinishReason

DONE = b"data: [DONE]\n\n"
_LENGTH = FinishReason.LENGTH
_MARK = "\0"


def event(value: object) -> bytes:
    """Return a server-sent event with JSON in it, in ASCII: some clients end lines at U+2028 too."""
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def dump(value: object) -> bytes:
    """Return compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Wording:
    """Words one answer. request_id: what its id is made of. created: seconds since 1970."""

    def __init__(self, asked: Asked, model: str, request_id: str, created: int, fingerprint: str) -> None:
        self._is_chat = asked.is_chat
        self._with_usage = asked.with_usage
        kind = "chat.completion" if asked.is_chat else "text_completion"
        self._frame = {
            "id": f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{request_id}",
            "object": kind,
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._chunk = self._frame | ({"object": f"{kind}.chunk"} if asked.is_chat else {})
        self._thoughts = Thoughts(asked.reasoning)
        self._around_said = self._around({"delta": {"content": _MARK}} if asked.is_chat else {"text": _MARK})
        self._around_thought = self._around({"delta": {"reasoning_content": _MARK}})

    def opening(self) -> bytes:
        """Return the event that says who speaks, nothing for a completion."""
        return self._event({"delta": {"role": "assistant", "content": ""}}, None) if self._is_chat else b""

    def piece(self, text: str) -> bytes:
        """See `Words`."""
        return self._worded(self._thoughts.add(text))

    def rest(self) -> bytes:
        """See `Words`."""
        return self._worded(self._thoughts.end())

    def ending(self, completion: Completion) -> bytes:
        """Return the events behind the last piece."""
        reason = reason_of(completion)
        last = self._event({"delta": {}} if self._is_chat else {"text": ""}, reason, _besides(completion))
        if self._with_usage:
            last += event({**self._chunk, "choices": [], "usage": usage_of(completion)})
        return last + DONE

    def whole(self, text: str, completion: Completion) -> bytes:
        """Return a whole answer as JSON."""
        parts = (self._thoughts.add(text), self._thoughts.end())
        said, thought = "".join(one.said for one in parts), "".join(one.thought for one in parts)
        thoughts = {"reasoning_content": thought} if thought else {}
        message = {"role": "assistant", "content": said, **thoughts, "refusal": None}
        choice = {
            "index": 0,
            **({"message": message} if self._is_chat else {"text": said}),
            "logprobs": None,
            "finish_reason": reason_of(completion),
        }
        return dump(
            {**self._frame, "choices": [choice], "usage": usage_of(completion), **_besides(completion)}
        )

    def _worded(self, parted: Parted) -> bytes:
        both = ((parted.thought, self._around_thought), (parted.said, self._around_said))
        return b"".join(json.dumps(text).encode().join(around) for text, around in both if text)

    def _around(self, said: dict[str, Any]) -> list[bytes]:
        """Return what stands before and behind the text of an event with `_MARK` in its place."""
        return self._event(said, None).split(json.dumps(_MARK).encode())

    def _event(
        self, said: dict[str, Any], reason: str | None, besides: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self._with_usage else {}
        return event({**self._chunk, "choices": [choice], **usage, **(besides or {})})


def reason_of(completion: Completion) -> str:
    """Return why an answer ended, in OpenAI's words."""
    return "length" if completion.finish_reason is _LENGTH else "stop"


def usage_of(completion: Completion) -> dict[str, Any]:
    """Return what an answer took, in OpenAI's words."""
    usage = completion.usage
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_new_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_new_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
    }


def _besides(completion: Completion) -> dict[str, Any]:
    """Return what our own clients want to know besides."""
    usage = completion.usage
    return {
        "llamacord": {
            "finish_reason": str(completion.finish_reason),
            "num_prompt_tokens": usage.num_prompt_tokens,
            "num_cached_tokens": usage.num_cached_tokens,
            "num_computed_tokens": usage.num_computed_tokens,
            "num_new_tokens": usage.num_new_tokens,
            "time_to_first_token_s": usage.time_to_first_token_s,
            "duration_s": usage.duration_s,
        }
    }
