"""Rows of a stream are made when they are looked at, and each bad one is written down once."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from core.data.row_stream import RowStream, rows_of
from core.data.rows import BadOnce, BadRows
from core.data.segments import Segment
from core.errors import DataError


def rows(made, bad=None):
    def make(number):
        made.append(number)
        return [Segment(f"{number}", train=True)]

    def fault(number, example):
        return DataError(f"row {number} is odd") if example % 2 else None

    return RowStream(range(10), make, fault=fault, bad=bad)


def test_rows_that_are_passed_over_are_not_made():
    made: list[int] = []
    stream = rows(made, BadRows("skip"))
    for _ in range(2):
        found = list(islice(stream, 3, None))
        assert not made and len(found) == 2
    assert [segment.text for row in found for segment in row] == ["6", "8"] and made == [6, 8]
    assert found[0][:1] == [Segment("6", train=True)] and made == [6, 8]


def test_rows_are_the_same_from_a_list_and_from_a_stream():
    def make(letter):
        return [Segment(letter, train=True)]

    streamed = rows_of(iter(["ab", "", "c"]), make, parts=list)
    assert isinstance(streamed, RowStream)
    assert (
        [list(row) for row in streamed]
        == rows_of(["ab", "", "c"], make, parts=list)
        == [[Segment(x, train=True)] for x in "abc"]
    )
    assert rows_of(["ab"], make) == [[Segment("ab", train=True)]]


def test_a_bad_row_is_written_once_however_far_each_reading_goes(tmp_path):
    """The first reading stops early, as the one that measures a stream does."""
    file = tmp_path / "rejects.jsonl"
    stream = rows([], BadRows("skip", file))
    for count in (2, 4, 5, 5):
        assert len(list(islice(stream, count))) == count
    list(stream)
    assert [json.loads(line)["why"] for line in file.read_text().splitlines()] == [
        f"row {number} is odd" for number in (2, 4, 6, 8, 10)
    ]


def test_a_bad_row_raises_where_it_stands():
    stream = iter(rows([]))
    assert next(stream)[0].text == "0"
    with pytest.raises(DataError, match="row 2 is odd"):
        next(stream)


def test_other_loader_workers_write_nothing(tmp_path):
    from torch.utils.data import DataLoader, IterableDataset

    class Rows(IterableDataset):
        def __init__(self):
            self.bad = BadOnce(BadRows("skip", tmp_path / "rejects.jsonl"))

        def __iter__(self):
            bad = self.bad.reading()
            for number in range(3):
                bad.handle(DataError(f"row {number}"))
                yield number

    assert len(list(DataLoader(Rows(), batch_size=None, num_workers=2))) == 6
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 3
