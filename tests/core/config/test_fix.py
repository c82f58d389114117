"""`graft check --fix`: misspelt keys are mended in the text, and nothing else of the file changes."""

from __future__ import annotations

import os
import stat

import pytest

from core.config import fix
from core.config.fix import mend, mended
from core.config.load import load_recipe
from core.errors import ConfigError, GraftError
from recipes.cli import main

WRONG = """\
# My recipe, with words that matter.
app: chat
modle: {path: embedded}   # the small one
data:
  trian:
    - {reader: embedded, splitt: train}
  max_lenght: 64
stages:
  - name: one      # epochs of this stage
    method: chat.sft
    wiht: {evry_turn: false}
    train: {epohs: 2, "batch": {sise: 8}}
trane: {epohs: 1}
"""
RIGHT = """\
# My recipe, with words that matter.
app: chat
model: {path: embedded}   # the small one
data:
  train:
    - {reader: embedded, split: train}
  max_length: 64
stages:
  - name: one      # epochs of this stage
    method: chat.sft
    with: {every_turn: false}
    train: {epochs: 2, "batch": {size: 8}}
train: {epochs: 1}
"""


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_misspelt_key_is_mended_and_nothing_else(tmp_path, ends):
    file = tmp_path / "mine.yaml"
    file.write_bytes(WRONG.replace("\n", ends).encode())
    os.chmod(file, 0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    diff = mend(link)
    assert file.read_bytes() == RIGHT.replace("\n", ends).encode()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640 and link.is_symlink()
    assert "-modle: {path: embedded}" in diff and "+model: {path: embedded}" in diff and "words" not in diff
    assert load_recipe(file).stages[0].train == {"epochs": 2, "batch": {"size": 8}}
    assert mend(file) == "" and sorted(os.listdir(tmp_path)) == ["link.yaml", "mine.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "app: chat\nmodel: {path: embedded}\nlearning: {}\n",  # near to no key
        "app: chat\nmodel: {path: embedded}\nmodle: {}\n",  # the key that is meant is there
        "app: chat\nmodel: {pat: embedded, path: embedded}\n",
        "app: chat\n model: x\n",  # no YAML
        "app: chta\n",  # a value
        "",
    ],
)
def test_what_may_be_meant_otherwise_stays(text):
    assert mended(text) == text


def test_options_of_readers_edits_and_adapters():
    text = (
        "app: {app}\nmodel: {{path: embedded, edits: [{{kind: prune, patern: '2:4'}}],\n"
        "  adapters: [{{kind: bottleneck, with: {{botleneck: 8}}}}]}}\n"
        "data: {{train: [{{reader: jsonl, path: x, with: {{sorc: de, tgt: en}}}}]}}\nmethod: translation.parallel\n"
    ).format(app="translation")
    found = mended(text.replace("sorc", "scr"))
    assert "pattern: '2:4'" in found and "scr: de" in found, "scr is near to src, and not near enough"
    text = "app: embeddings\nmethod: embeddings.stage1\nmodel: {path: embedded}\n"
    text += "data: {train: [{reader: jsonl, path: x, with: {taks: find it}}]}\n"
    assert "with: {task: find it}" in mended(text)


def test_one_name_in_two_blocks_of_a_line():
    text = "app: chat\nmodel: {path: embedded}\nmethod: chat.sft\ndata: {train: [{reader: embedded}]}\n"
    text += "train: {batch: {sze: 8}, epohs: 1}\neval: {limt: 3}\n"
    assert mended(text).endswith("train: {batch: {size: 8}, epochs: 1}\neval: {limit: 3}\n")


def test_overrides_are_told_and_not_written(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("app: chat\nmodel: {path: embedded}\nmethod: chat.sft\ndata: {train: [{reader: embedded}]}\n")
    before = file.read_text()
    assert mend(file, ["train.epohs=2"]) == "" and file.read_text() == before


def test_a_write_that_fails_leaves_the_file(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(WRONG)

    def full(path, text):
        raise GraftError("cannot write: no space")

    monkeypatch.setattr(fix, "write_text", full)
    with pytest.raises(GraftError, match="no space"):
        mend(file)
    assert file.read_text() == WRONG
    file.write_bytes(b"app: \xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        mend(file)


def test_the_verb_shows_the_change_and_checks_what_it_wrote(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(WRONG)
    assert main(["check", str(file)]) == 2 and file.read_text() == WRONG
    assert main(["check", str(file), "--fix"]) == 0 and file.read_text() == RIGHT
    out = capsys.readouterr().out
    assert "+model: {path: embedded}" in out and "recipe is valid" in out
    assert main(["check", str(file), "--fix"]) == 0
    assert "no misspelt keys" in capsys.readouterr().out
    file.write_text(WRONG.replace("reader: embedded", "reader: embeded"))
    assert main(["check", str(file), "--fix"]) == 2
    captured = capsys.readouterr()
    assert "+model" in captured.out and "did you mean 'embedded'" in captured.err
