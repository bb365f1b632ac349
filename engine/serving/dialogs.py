"""OpenAI's messages as a dialog that every chat format can write: system, then user and assistant in turn.

Pure. Nothing that was said is left out: what stands where a dialog has no place for it joins its neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.serving.errors import ApiError
from engine.serving.fields import Fields, kind_of
from engine.types import ChatMessage, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_PARTS = {"image_url": "an image", "input_audio": "audio", "file": "a file", "video_url": "a video"}
_MAX_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Dialog:
    """What is asked. answer_so_far: the beginning of the answer, with which the model is to go on."""

    messages: tuple[ChatMessage, ...]
    answer_so_far: str = ""


def read_messages(fields: Fields, default_system_prompt: str) -> Dialog:
    """Return the dialog in `messages`. Raises `ApiError`.

    default_system_prompt: used where there is no system message; an empty one takes its place.
    """
    given = fields.value("messages")
    if given is None:
        fields.refuse("messages", "is missing: say what is asked, as [{role, content}].")
    if not isinstance(given, list):
        fields.refuse("messages", f"must be an array, not {kind_of(given)}.")
    if not given:
        fields.refuse("messages", "is empty: there must be at least one message.")
    messages = [_read(message, f"messages[{index}]") for index, message in enumerate(given)]
    num_system = next((at for at, one in enumerate(messages) if one.role != "system"), len(messages))
    system = "\n\n".join(filter(None, (one.content for one in messages[:num_system])))
    turns = messages[num_system:]
    if not turns:  # there is nothing else to answer
        return Dialog((ChatMessage("user", system),))
    told = system if num_system else default_system_prompt
    return _dialog(([ChatMessage("system", told)] if told.strip() else []), turns)


def _dialog(system: list[ChatMessage], turns: list[ChatMessage]) -> Dialog:
    joined: list[ChatMessage] = []
    for turn in turns:
        role: Role = "assistant" if turn.role == "assistant" else "user"
        if joined and joined[-1].role == role:
            joined[-1] = ChatMessage(role, f"{joined[-1].content}\n\n{turn.content}")
        else:
            joined.append(ChatMessage(role, turn.content))
    if joined[0].role == "assistant":  # it said something first
        joined.insert(0, ChatMessage("user", ""))
    answer = joined.pop().content if joined[-1].role == "assistant" else ""
    return Dialog((*system, *joined), answer)


def _read(message: Any, place: str) -> ChatMessage:
    if not isinstance(message, dict):
        raise ApiError(400, f"{place} must be an object, not {kind_of(message)}.", param=place)
    fields = Fields(message, place)
    role = fields.text("role")
    if role in ("tool", "function") or fields.value("tool_calls") or fields.value("function_call"):
        fields.refuse("role", "must not be about tools: this model takes none.", "unsupported_parameter")
    if role not in _ROLES:
        shown = "missing" if role is None else f"{role[:_MAX_SHOWN_CHARACTERS]!r}"
        fields.refuse("role", f"is {shown}; it must be one of {', '.join(_ROLES)}.")
    return ChatMessage(_ROLES[role], _content(fields))


def _content(fields: Fields) -> str:
    content = fields.value("content")
    if isinstance(content, str):
        return content
    if content is None:
        refused = fields.text("refusal")
        if refused is None:
            fields.refuse("content", "is missing: it must be a text, or parts of type text.")
        return refused
    if not isinstance(content, list):
        fields.refuse("content", f"must be a text, or an array of parts, not {kind_of(content)}.")
    return "".join(_part(part, fields.name(f"content[{index}]")) for index, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if not isinstance(part, dict):
        raise ApiError(400, f"{place} must be an object, not {kind_of(part)}.", param=place)
    fields = Fields(part, place)
    kind = fields.text("type")
    if kind in ("text", "refusal"):
        text = fields.text(kind)
        if text is None:
            fields.refuse(kind, "is missing.")
        return text
    if kind in _PARTS:
        what = _PARTS[kind]
        raise ApiError(400, f"This model reads text only, and {place} is {what}.", param=place)
    return fields.refuse("type", "must be text: this model reads nothing else.")
