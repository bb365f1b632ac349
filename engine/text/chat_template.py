"""Renders a model's own chat template. The only file that imports `jinja2`, and a program of its own.

Templates come out of files that anybody may have made. Jinja's sandbox keeps a template from Python; it
cannot keep one from counting to infinity or filling the memory. So this file runs as a process beside the
engine (`template_process.py` starts it) that limits its own memory and is ended when it takes too long. It
imports nothing of the engine. It reads JSON lines: first the template and its tokens, then lists of dialogs
with the template's switches, and answers each with a line.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_CHARACTERS = 4_000_000
_MAX_SECONDS = 20
"""Whoever started this ends it after half as long."""
_MAX_MEMORY_BYTES = 512 * 2**20
_MAX_REASON_CHARACTERS = 200

Dialog = Sequence[dict[str, str]]


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the model's words for training; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 types it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block of its own: what is set in it ends with it.
        return jinja2.nodes.CallBlock(self.call_method("_say"), [], [], body).set_lineno(line)

    def _say(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """A compiled template, in the surroundings that Hugging Face's transformers gives it."""

    def __init__(self, source: str, tokens: dict[str, Any]) -> None:
        """`tokens` are variables, such as `bos_token` and `eos_token`. Raises `jinja2.TemplateError`."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._template = environment.from_string(source)
        self._tokens = tokens

    def render(self, dialog: Dialog, switches: Mapping[str, bool] | None = None) -> str:
        """Return the prompt's text, ready for the answer. Raises whatever the template leads to."""
        variables = {**self._tokens, **(switches or {})}
        pieces: list[str] = []
        num_characters = 0
        for piece in self._template.generate(
            messages=dialog, add_generation_prompt=True, tools=None, documents=None, **variables
        ):
            pieces.append(piece)
            num_characters += len(piece)
            if num_characters > MAX_CHARACTERS:
                raise jinja2.TemplateError("it writes without an end")
        return "".join(pieces)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # other systems have no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))


def _set_alarm(seconds: int) -> None:
    """Have the system end this process in `seconds`, should nobody be left to do it."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _answer(template: ChatTemplate, dialog: Dialog, switches: Mapping[str, bool]) -> dict[str, str]:
    try:
        return {"text": template.render(dialog, switches)}
    except Exception as error:  # noqa: BLE001 - the template is a foreign program
        return {"error": _reason(error)}


def _reason(error: Exception) -> str:
    words = "it takes too much memory" if isinstance(error, MemoryError) else " ".join(str(error).split())
    return words[:_MAX_REASON_CHARACTERS].rstrip(".") or "it gives no reason"


def main() -> None:
    """Serve until the input ends."""
    _limit_memory()
    template: ChatTemplate | None = None
    for line in sys.stdin:
        _set_alarm(_MAX_SECONDS)
        request = json.loads(line)
        if template is None:
            try:
                template = ChatTemplate(request["template"], request["tokens"])
                answer: Any = {}
            except Exception as error:  # noqa: BLE001 - the template is a foreign program
                answer = {"error": _reason(error)}
        else:
            answer = [_answer(template, dialog, request["switches"]) for dialog in request["dialogs"]]
        print(json.dumps(answer), flush=True)
        _set_alarm(0)


if __name__ == "__main__":
    main()
