"""What SHARDS may say."""

from __future__ import annotations

import pytest

from bot.fleet.choice import ShardChoice, read_shards


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0-3/16", ["0-3/16"]),
        ("5/16", ["5/16"]),
        ("0/1", ["0/1"]),
        ("0 - 1 / 2", ["0-1/2"]),
        ("2 of 4", ["0-1/4", "2-3/4"]),
        ("2of5", ["0-1/5", "2-3/5", "4/5"]),
        ("4 of 4", ["0-3/4"]),
    ],
)
def test_certain_shards_or_any_that_are_free(written: str, meant: list[str]) -> None:
    choice = read_shards(written)
    assert [str(shards) for shards in choice.candidates()] == meant
    assert choice.is_fixed is ("of" not in written)


def test_without_the_setting_there_is_one_shard() -> None:
    assert [str(shards) for shards in ShardChoice().candidates()] == ["0/1"]
    assert ShardChoice().are_all


@pytest.mark.parametrize(
    "written", ["", "4", "3-1/4", "0-4/4", "4/4", "0/0", "0 of 4", "5 of 4", "a/b", "-1/4", "0-3", "1/99999"]
)
def test_anything_else_is_refused_with_the_rule(written: str) -> None:
    with pytest.raises(ValueError, match=r"must be like 0-3/16"):
        read_shards(written)
