"""The file of one's own data: JSON that others can read, of a size that Discord takes."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime

from bot.privacy import fitting, to_json
from storage.people import KeptAnswer, KeptChange, KeptData, KeptQuestion

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DATA = KeptData(
    questions=(
        KeptQuestion(7, 2**60 + 1, "channel", "Anna", "Größe?", AT, (KeptAnswer("complete", "42", AT),)),
    ),
    changes=(KeptChange(None, 900, "top_k", "3", AT),),
    opted_out_at=None,
    blocked_on=(8,),
)


def test_the_file_is_json_with_ids_as_texts() -> None:
    read = json.loads(to_json(5, DATA, at=AT))
    assert (read["user_id"], read["blocked_on_servers"], read["opted_out_at"]) == ("5", ["8"], None)
    assert read["questions"] == [
        {
            "server_id": "7",
            "channel_id": str(2**60 + 1),
            "place": "channel",
            "asked_at": "2026-01-02T03:04:05+00:00",
            "your_name": "Anna",
            "text": "Größe?",
            "answers": [{"at": "2026-01-02T03:04:05+00:00", "state": "complete", "text": "42"}],
        }
    ]
    assert read["settings_you_changed"][0] == {
        "server_id": None,
        "channel_id": "900",
        "setting": "top_k",
        "value": 3,
        "at": "2026-01-02T03:04:05+00:00",
    }


def test_a_file_that_is_too_long_is_packed_and_one_that_stays_so_is_none() -> None:
    content = b"x" * 10_000
    assert fitting("a.json", content, 10_000) == ("a.json", content)
    found = fitting("a.json", content, 500)
    assert found is not None
    assert found[0] == "a.json.gz"
    assert gzip.decompress(found[1]) == content
    assert fitting("a.json", content, 10) is None
