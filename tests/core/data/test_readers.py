"""The readers of an app: reading into a list, and what is refused."""

from __future__ import annotations

import pytest

from core.config.registry import app_names, get_app
from core.data.readers import Readers
from core.data.rows import BadRows
from core.errors import ConfigError, DataError

READERS: Readers[str] = Readers("letters")


@READERS.register("letters")
def letters(path, *, split=None, on_bad, upper=False):
    for number, letter in enumerate(path, 1):
        if letter == "?":
            on_bad.handle(DataError("no letter", file="given", line=number))
            continue
        yield letter.upper() if upper else letter


def test_the_usual_reader_reads_at_most_so_many_rows_by_its_own_arguments():
    assert READERS.load("abc") == ["a", "b", "c"]
    assert READERS.load("abc", limit=2, upper=True) == ["A", "B"] and READERS.load("abc", limit=0) == []


def test_a_malformed_row_raises_unless_it_may_be_left_out():
    with pytest.raises(DataError, match="no letter"):
        READERS.load("a?b")
    kept = BadRows("skip")
    assert READERS.load("a?b", on_bad="skip") == ["a", "b"] == READERS.load("a?b", on_bad=kept) and kept.count == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reader": "leters"}, "did you mean 'letters'"),
        ({"uper": True}, "did you mean 'upper'"),
        ({"limit": -1}, "at least 0"),
        ({"on_bad": "ignore"}, "'raise', 'skip'"),
    ],
)
def test_what_no_reader_can_do_is_refused(given, said):
    with pytest.raises(ConfigError) as error:
        READERS.load("abc", **given)
    assert said in str(error.value)


@pytest.mark.parametrize("name", app_names())
def test_every_app_reads_this_way(name):
    app = get_app(name)
    assert isinstance(app.readers, Readers) and app.readers.usual in app.readers
    for room in app.rooms.values():
        assert isinstance(room.readers, Readers) and room.readers.usual in room.readers
