"""What goes to a machine without data and registry: copied as it lies here, or refused before anything is fetched."""

from __future__ import annotations

import pytest

from benchmarks import carry
from benchmarks.bar import Unavailable


@pytest.fixture
def shared(tmp_path, monkeypatch):
    for name in ("models/m/config.json", "data/set/rows.jsonl", "data/text.txt", "data/translation/x"):
        (tmp_path / "shared" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shared" / name).write_text(name)
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path / "shared"))
    return tmp_path


def test_models_and_data_lie_there_as_here(shared, monkeypatch):
    monkeypatch.setattr(carry, "LOADS", {"a": carry.Load(models=("m",), data=("set", "text.txt"))})
    assert carry.main(["a", "--to", str(shared / "there")]) == 0
    for name in ("models/m/config.json", "data/set/rows.jsonl", "data/text.txt"):
        assert (shared / "there" / name).read_text() == name
    monkeypatch.setenv("GRAFT_DATA", str(shared / "there"))
    assert carry.data_root() == shared / "there" / "data"


def test_what_is_missing_is_said_before_anything_is_copied(shared, monkeypatch, capsys):
    monkeypatch.setattr(carry, "LOADS", {"a": carry.Load(models=("m", "n"), packages=("none",))})
    assert carry.main(["a", "--to", str(shared / "there")]) == 1
    assert "models/n" in capsys.readouterr().err and not (shared / "there").exists()
    with pytest.raises(Unavailable, match="known for b; areas: a"):
        carry.carry(["b"], shared / "there")


def test_parts_of_packages_are_left_out(tmp_path, monkeypatch):
    import zipfile

    def pip(*words):
        with zipfile.ZipFile(tmp_path / words[words.index("-d") + 1] / "p.whl", "w") as wheel:
            for name in ("p/__init__.py", "studio/big.bin", "p/lib_cuda11.so", "p/lib_cuda13.so"):
                wheel.writestr(name, "x")

    monkeypatch.setattr(carry, "pip", pip)
    carry.unpack(["p"], tmp_path / "site", "3.12", ["studio", "p/lib_cuda11*.so"])
    assert sorted(str(f.relative_to(tmp_path / "site")) for f in (tmp_path / "site").rglob("*.*")) == [
        "p/__init__.py", "p/lib_cuda13.so",
    ]  # fmt: skip
