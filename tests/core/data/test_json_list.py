"""A JSON list read object by object is what json.loads makes of it, wherever the file is cut into pieces."""

from __future__ import annotations

import json

import pytest

from core.data import json_list as module
from core.data.json_list import json_list
from core.data.rows import BadRows, jsonl
from core.errors import DataError

ROWS = [{"text": 'a "quoted" ] , { é€😀\n', "n": [1, {"x": None}]}, {}, {"deep": [[[{"a": -1.5e3}]]]}, {"t": "x" * 300}]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 16])
@pytest.mark.parametrize("indent", [None, 2])
def test_every_cut_gives_the_same_rows(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(module, "CHUNK", chunk)
    for ascii_ in (True, False):
        file = tmp_path / "rows.json"
        file.write_text(f"\n {json.dumps(ROWS, indent=indent, ensure_ascii=ascii_)} \n")
        assert list(json_list(file, BadRows())) == list(enumerate(ROWS, 1))


@pytest.mark.parametrize("chunk", [1, 1 << 16])
@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ('[{"a": 1},\n {"a": 2}\n {"a": 3}]', "followed by neither", 3),
        ('[{"a": 1},\n {"a" 2}, {"a": 3}]', "delimiter", 2),
        ('[{"a": 1},\n\n{"a": "unended', "ends inside the list: Unterminated", 3),
        ('[{"a": 1},', "ends inside the list: Expecting value", 1),
        ('[{"a": 1}', "ends inside the list", 1),
        ('[{"a": 1}]\n[]', "something follows", 2),
        ('{"a":\n 1}', "holds no list", None),
        ("[" * 100000, "too deeply", 1),
    ],
)
def test_what_is_no_list_is_told_with_its_line(tmp_path, monkeypatch, chunk, text, what, line):
    monkeypatch.setattr(module, "CHUNK", max(chunk, len(text) // 20))
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(DataError, match=what) as caught:
        list(json_list(file, BadRows()))
    assert caught.value.line == line and caught.value.file == str(file)


def test_items_that_are_no_objects_are_bad_rows(tmp_path):
    (tmp_path / "rows.json").write_text('[1, {"a": 1}, "x", [2]]')
    bad = BadRows("skip")
    assert list(json_list(tmp_path / "rows.json", bad)) == [(2, {"a": 1})]
    assert [error.line for error in bad.first] == [1, 3, 4]


def test_an_early_mistake_is_told_without_reading_the_rest(tmp_path):
    class Once:
        def __init__(self, handle):
            self.handle, self.read_ = handle, 0

        def read(self, count):
            self.read_ += count
            return self.handle.read(count)

    file = tmp_path / "rows.json"
    file.write_text('[{"a" 1},' + '{"a": 1},' * 200_000 + "{}]")
    with open(file) as handle:
        counted = Once(handle)
        text = module._Text(counted, file)
        text.next_sign()
        text.at += 1
        with pytest.raises(DataError, match="delimiter"):
            text.value()
    assert counted.read_ <= 2 * module.CHUNK


@pytest.mark.parametrize("reader", [json_list, jsonl])
def test_the_byte_that_is_not_utf8_is_counted_from_the_files_start(tmp_path, reader):
    """Python decodes 8 KiB at a time and counts from there."""
    file = tmp_path / "rows"
    rows = [{"a": "x" * 90}] * 300
    text = json.dumps(rows, indent=0) if reader is json_list else "".join(json.dumps(r) + "\n" for r in rows)
    raw = text.encode()
    place = 20_003
    while raw[place : place + 1] != b"x":
        place += 1
    file.write_bytes(raw[:place] + b"\xe9" + raw[place + 1 :])
    with pytest.raises(DataError, match=f"not UTF-8 at byte {place}$|not UTF-8 at byte {place}\n") as caught:
        list(reader(file, BadRows()))
    assert caught.value.line == raw.count(b"\n", 0, place) + 1
