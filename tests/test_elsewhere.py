"""No call that only POSIX has stops a start on another system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.engine.tiny_hf import TinyHuggingFace

ROOT = Path(__file__).parents[1]
TEMPLATE = (
    "{# its own #}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def test_the_bot_answers_where_nothing_of_posix_is_there(tmp_path: Path) -> None:
    source = TinyHuggingFace()
    source.files["chat_template.jinja"] = TEMPLATE.encode()
    environment = {
        **os.environ,
        "SOURCE": str(source.save(tmp_path / "source")),
        "MODEL": str(tmp_path / "model"),
        "DATABASE": str(tmp_path / "data" / "bot.sqlite3"),
        "LLAMA_CACHE": str(tmp_path / "cache"),
        "MAX_NEW_TOKENS": "8",
        "TEMPERATURE": "0",
        "CONTEXT_TOKENS": "512",
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, "-m", "tests.elsewhere"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert "Model: source (int8)" in run.stdout
    assert "✔ Database:" in run.stdout
    answer = run.stdout.rpartition("✔")[2].partition("\n")[2]
    assert "8 tokens" in answer
