"""A path, a folder or a file that holds no rows: the error says what it is, and what to do."""

from __future__ import annotations

import gzip
import os

import pytest

from apps.chat.data import READERS as CHAT
from apps.embeddings.data import READERS as EMBEDDINGS
from core.data.reading import not_found, required
from core.data.rows import BadRows, jsonl
from core.errors import DataError

READERS = {"chat": CHAT.get("messages"), "sniffed": CHAT.get("auto"), "embeddings": EMBEDDINGS.get("jsonl")}


def told(name, path, **options):
    with pytest.raises(DataError) as caught:
        list(READERS[name](str(path), on_bad=BadRows(), **options))
    return caught.value


@pytest.mark.parametrize("name", READERS)
def test_paths_that_lead_to_nothing(tmp_path, monkeypatch, name):
    (tmp_path / "training.jsonl").write_text("{}\n")
    os.symlink("/nowhere/at/all", tmp_path / "link.jsonl")
    monkeypatch.chdir(tmp_path)
    for path, hint in (
        ("trainin.jsonl", "did you mean 'training.jsonl'?"),
        ("other.jsonl", f"starts from {tmp_path}"),
        ("absent/rows.jsonl", "no folder absent"),
        ("link.jsonl", "a link to /nowhere/at/all"),
        ("~/rows.jsonl", "~ is not expanded"),
    ):
        error = told(name, path)
        assert error.what == "file not found" and hint in error.hint and error.where == path
    assert "needs a path" in told(name, "").what


@pytest.mark.parametrize("name", READERS)
def test_folders(tmp_path, name):
    error = told(name, tmp_path)
    assert "holds no train.jsonl" in error.what and error.hint == "it is empty"
    (tmp_path / "notes.txt").write_text("x")
    assert told(name, tmp_path).hint == "it holds: notes.txt"
    (tmp_path / "validation.jsonl").write_text("{}\n")
    error = told(name, tmp_path, split="test")
    assert "holds no test.jsonl" in error.what and error.hint == "set split: to one of validation"


def test_a_reader_of_files_alone_says_so(tmp_path):
    with pytest.raises(DataError, match="this is a folder") as caught:
        required(tmp_path)
    assert caught.value.hint == "it is empty" and "starts from" in not_found("odd name.x").hint


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (gzip.compress(b'{"text": "a"}\n', mtime=0), "gunzip"),
        ("{}\n".encode("utf-16"), "it is UTF-16"),
        (b"PK\x03\x04\xff\xff", "unpack"),
        (b"PAR1\xff\xff", "Parquet"),
        (b"\xff\xff\n\x00\x01", "it is no text"),
        ("é".encode("latin-1"), "convert the file to UTF-8"),
    ],
)
def test_files_that_are_no_text(tmp_path, name, content, hint):
    (tmp_path / "rows.jsonl").write_bytes(content)
    error = told(name, tmp_path / "rows.jsonl")
    assert error.what.startswith("not UTF-8 at byte") and hint in error.hint


def test_a_last_line_that_was_half_written(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    bad = BadRows("skip")
    assert [number for number, _ in jsonl(tmp_path / "rows.jsonl", bad)] == [1, 2]
    assert bad.first[0].what.startswith("the last line is cut off, not valid JSON") and bad.first[0].line == 3
    (tmp_path / "rows.jsonl").write_text('{"a": \n{"a": 2}')
    bad = BadRows("skip")
    list(jsonl(tmp_path / "rows.jsonl", bad))
    assert bad.first[0].what.startswith("not valid JSON"), "a line in the middle is not cut off"


def test_a_table_given_to_a_reader_of_lines(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert "JSON lines" in told("embeddings", tmp_path / "rows.csv").hint


def test_a_bad_row_of_a_folder_is_placed_in_its_file(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n')
    assert told("chat", tmp_path).where == f"{tmp_path / 'train.jsonl'}:1, field 'messages'"
