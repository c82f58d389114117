"""All bad rows of a file are told, and a copy holds exactly the others."""

from __future__ import annotations

import json

import pytest

from core.data.cleaned import Listed, clean_copies
from core.errors import DataError


def bad(file, *lines):
    return [DataError("bad", file=file, line=line) for line in lines]


def test_a_copy_of_lines_keeps_each_as_it_was_written(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a":1}\n\n{broken\n{ "a": "é" }\n{"a": 4}', encoding="utf-8-sig")
    before = file.read_bytes()
    made = clean_copies(bad(file, 3))
    assert made == {str(file): tmp_path / "rows.clean.jsonl"} and file.read_bytes() == before
    assert made[str(file)].read_text() == '{"a":1}\n{ "a": "é" }\n{"a": 4}\n'


def test_a_copy_of_a_list_is_lines(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text("\n" + json.dumps([{"a": 1}, 5, {"a": "é"}, {"a": 3}], indent=1))
    assert clean_copies(bad(file, 2, 4))[str(file)].read_text() == '{"a": 1}\n{"a": "é"}\n'


def test_what_is_no_json_is_passed_over_and_no_copy_is_overwritten(tmp_path):
    table, file = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    table.write_text("a,b\n1\n")
    file.write_text("{}\n{}\n")
    assert clean_copies([*bad(table, 2), DataError("no place"), DataError("no line", file=file)]) == {}
    (tmp_path / "rows.clean.jsonl").write_text("mine")
    with pytest.raises(DataError, match="there already"):
        clean_copies(bad(file, 1))
    assert (tmp_path / "rows.clean.jsonl").read_text() == "mine"


def test_the_first_error_names_the_others():
    listed = Listed()
    for error in bad("f", *range(3, 11)):
        listed.handle(error)
    told = listed.told()
    assert told.where == "f:3" and told.hint.startswith("rows 4, 5, 6, 7, 8, … are bad too; data.on_bad: skip")
    assert listed.told(usable=False).hint == "none of the 8 rows can be used"
    one = Listed()
    one.handle(bad("f", 1)[0].with_hint("do this"))
    assert one.told().hint.startswith("do this; data.on_bad") and one.told(usable=False).hint == "do this"
    few = Listed(2)
    few.handle(bad("f", 1)[0])
    with pytest.raises(DataError, match="bad"):
        few.handle(bad("f", 2)[0])


def test_a_list_that_breaks_off_leaves_nothing_behind(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('[{"a": 1}, 5, {"a"')
    with pytest.raises(DataError, match="ends inside the list"):
        clean_copies(bad(file, 2))
    assert [place.name for place in tmp_path.iterdir()] == ["rows.json"]
