"""The runner: met, missed, unavailable, stored; and the bars' own judgements."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks import __main__ as command
from benchmarks import runner, sharing
from benchmarks.bar import Bar, Measured, Unavailable, find, load_bars

KEYS = {
    *("id", "value", "unit", "target", "pass", "baseline", "chance"),
    *("device", "versions", "command", "seconds"),
}


def bar(measure, needs="cpu", judge=None):
    return Bar("fake.F1", "a fake", "points", "≥ 3", needs, 0.1, measure, judge)


def of(value):
    return lambda setting: Measured(value, value >= 3, baseline=2, chance=1)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "WORK", tmp_path / "work")
    return tmp_path


def test_met_and_missed(work):
    met, missed = (runner.run_bar(bar(of(value)), results=work) for value in (3, 2))
    assert KEYS <= met.keys()
    assert (met["pass"], met["value"], met["baseline"], met["chance"], met["status"]) == (True, 3, 2, 1, "measured")
    assert missed["pass"] is False and "NOT MET" in runner.show(missed)
    assert runner.exit_code([met]) == 0 and runner.exit_code([met, missed]) == 1
    assert json.loads(runner.to_json(met))["command"] == "python -m benchmarks run fake.F1"
    assert not list(work.glob("*.json")), "a CPU result is kept only when asked"


def test_unavailable_is_neither(work):
    def measure(setting):
        raise Unavailable("no such data")

    result = runner.run_bar(bar(measure), results=work)
    assert (result["pass"], result["status"], result["reason"]) == (None, "unavailable", "no such data")
    assert "no such data" in runner.show(result) and runner.exit_code([result]) == 0
    assert KEYS <= result.keys()


def test_an_error_is_not_hidden(work):
    def measure(setting):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        runner.run_bar(bar(measure), results=work)


def test_gpu_result_is_stored_and_shown_elsewhere(work, monkeypatch):
    def never(setting):
        raise AssertionError("must not be measured without a GPU")

    monkeypatch.setattr(runner, "has_gpu", lambda: False)
    assert runner.run_bar(bar(never, "gpu"), results=work)["status"] == "unavailable"
    monkeypatch.setattr(runner, "has_gpu", lambda: True)
    assert runner.run_bar(bar(of(2), "gpu"), quick=True, results=work)["command"].endswith("--quick")
    assert not (work / "fake.F1.json").exists(), "a quick result is not a result"
    runner.run_bar(bar(of(2), "gpu"), results=work)
    monkeypatch.setattr(runner, "has_gpu", lambda: False)
    found = runner.run_bar(bar(never, "gpu"), results=work)
    assert (found["status"], found["value"], found["pass"]) == ("stored", 2, False)
    assert "stored result" in runner.show(found) and runner.exit_code([found]) == 1


def test_without_a_gpu_the_small_form_is_measured_where_there_is_one(work, monkeypatch):
    monkeypatch.setattr(runner, "has_gpu", lambda: False)
    assert runner.run_bar(bar(of(5), "gpu"), results=work, small=True)["reason"] == "it has no form for a CPU"
    small = dataclasses.replace(bar(of(5), "gpu"), small=1)
    assert runner.run_bar(small, results=work)["status"] == "unavailable"
    assert runner.run_bar(small, results=work, small=True)["command"].endswith("fake.F1 --small")
    assert [path.name for path in work.glob("*.json")] == ["fake.F1.cpu.json"]
    assert runner.run_bar(small, results=work)["status"] == "stored", "better than none"
    monkeypatch.setattr(runner, "has_gpu", lambda: True)
    runner.run_bar(dataclasses.replace(small, measure=of(2)), results=work, small=True)
    monkeypatch.setattr(runner, "has_gpu", lambda: False)
    assert runner.run_bar(small, results=work)["value"] == 2, "a GPU's result goes first"


def test_judge_decides_again_on_a_stored_result(work, monkeypatch):
    monkeypatch.setattr(runner, "has_gpu", lambda: True)
    runner.run_bar(bar(of(5), "gpu"), results=work)
    monkeypatch.setattr(runner, "has_gpu", lambda: False)
    harder = bar(of(5), "gpu", judge=lambda result: {**result, "pass": result["value"] >= 9})
    assert runner.run_bar(harder, results=work)["pass"] is False


def test_work_folder_is_empty_each_time(work):
    def measure(setting):
        assert list(setting.work.iterdir()) == []
        (setting.work / "left").write_text("x")
        return Measured(3, True)

    runner.run_bar(bar(measure), results=work)
    runner.run_bar(bar(measure), results=work)


def test_a_killed_bar_goes_on_after_its_finished_runs(work, capsys):
    made = []

    def run(name, breaks):
        made.append(name)
        if breaks:
            raise KeyboardInterrupt
        return {"name": name, "pair": [1, 2.5]}

    def measure(setting, breaks=False):
        jobs = {name: (run, (name, breaks and name == "second")) for name in ("first", "second")}
        found = sharing.together(jobs, work=setting.work)
        assert list(found) == ["first", "second"] and found["first"] == {"name": "first", "pair": [1, 2.5]}
        return Measured(3, True)

    with pytest.raises(KeyboardInterrupt):
        runner.run_bar(bar(lambda setting: measure(setting, breaks=True)), results=work)
    assert "first is done" in capsys.readouterr().err
    went_on = runner.run_bar(bar(measure), results=work, go_on=True)
    assert made == ["first", "second", "second"] and went_on["command"].endswith("fake.F1 --go-on")
    runner.run_bar(bar(measure), results=work, go_on=True)
    assert made == ["first", "second", "second", "first", "second"], "what was measured to its end begins anew"


def test_bars_are_found():
    bars = load_bars()
    assert {"translation.T1", "translation.T2", "translation.T3", "product.quickstart", "product.help"} <= set(bars)
    assert [b.id for b in find(bars, ["product.help"])] == ["product.help"]
    assert len(find(bars, ["product"])) == 3 and len(find(bars, ["all"])) == len(bars)
    assert find(bars, ["translation.T2"]) == [bars["translation.T2"]]
    assert find(bars, ["translation.T99"]) == []


def test_command_line(capsys, monkeypatch, work):
    monkeypatch.setattr(command, "load_bars", lambda: {"fake.F1": bar(of(2))})
    assert command.main(["ls"]) == 0 and "fake.F1" in capsys.readouterr().out
    assert command.main(["run", "fake.F1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["pass"] is False
    assert command.main(["run", "nothing"]) == 2
    assert "fake.F1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "peer", "expected"),
    [(39, 38.0, True), (39, 40.5, False), (29, 20.0, False), (39, None, None), (29, None, False)],
)
def test_translation_t2_needs_floor_and_peer(tmp_path, monkeypatch, value, peer, expected):
    from benchmarks.bars import translation_t2 as bar

    file = tmp_path / "peer.json"
    if peer is not None:
        file.write_text(json.dumps({"value": peer, "pass": True}))
    monkeypatch.setattr(bar, "PEER", file)
    details = {"parameters": 17_000_000, "total_seconds": 300}
    assert bar.judge({"value": value, "details": details})["pass"] is expected
    late = {"value": value, "details": {**details, "total_seconds": 481}}
    assert bar.judge(late)["pass"] is False


def test_translation_t2_takes_no_weak_peer(tmp_path, monkeypatch):
    from benchmarks.bars import translation_t2 as bar

    file = tmp_path / "peer.json"
    file.write_text(json.dumps({"value": 12.0, "pass": False}))
    monkeypatch.setattr(bar, "PEER", file)
    found = bar.judge({"value": 39, "details": {"parameters": 1, "total_seconds": 1}})
    assert found["pass"] is None and "too weak" in found["baseline"]


def test_data_root_takes_both_forms(tmp_path, monkeypatch):
    from benchmarks.data import data_root, read_lines

    (tmp_path / "data" / "translation").mkdir(parents=True)
    (tmp_path / "data" / "translation" / "a.en").write_text("one\u2028two\nthree\n", encoding="utf-8")
    for given in (tmp_path, tmp_path / "data"):
        monkeypatch.setenv("GRAFT_DATA", str(given))
        assert data_root() == tmp_path / "data"
    assert read_lines("translation/a.en") == ["one\u2028two", "three"]
    with pytest.raises(Unavailable, match=r"b\.en"):
        read_lines("translation/b.en")
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(Unavailable, match="GRAFT_DATA"):
        data_root()
