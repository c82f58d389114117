"""Every recipe with a mistake is refused with its place, in this process."""

from __future__ import annotations

from benchmarks.bars.training_badconfig import COUNT, cases, line_of, write_data
from recipes.cli import main


def test_all_mistakes_are_refused_with_their_place(tmp_path, capsys):
    write_data(tmp_path)
    wrong = []
    for number, case in enumerate(cases()):
        file = tmp_path / f"{number}.yaml"
        file.write_text(case.text.replace("{work}", str(tmp_path)), encoding="utf-8")
        status = main(["check", str(file), *case.overrides])
        said = "".join(capsys.readouterr())
        missing = [word for word in case.says if word.replace("{work}", str(tmp_path)) not in said]
        if status != 2 or missing:
            wrong.append((case.name, status, missing, said[-200:]))
    assert not wrong and len(cases()) == COUNT


def test_a_line_is_found():
    assert line_of("model:\n  path: x\ndata:\n  path: y\n", ("model", "path")) == ":2"
    assert line_of("model:\n  path: x\ndata:\n  path: y\n", ("data", "path")) == ":4"
