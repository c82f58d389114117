"""The warm worker, the cache by content and the pool."""

from __future__ import annotations

import threading
import time

import pytest

from core.errors import ConfigError, SandboxError
from core.execution import ExecCache, ExecPool, ExecResult, Policy, Sandbox, Step, StepResult, ToolMissing, tool

AVAILABLE = [probe.name for probe in Sandbox.probe() if probe.available]
pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no sandbox backend works here (Debian package: bubblewrap)")


@pytest.fixture
def box():
    return Sandbox.best(Policy(wall_s=5, mem_mb=200, max_output_kb=32, level="weak"))


SOURCE = """
seen = []
def twice(x): return 2 * x
def note(x): seen.append(x); return len(seen)
def fail(): raise ValueError("no")
def say(): print("printed"); return {"a": [1, None, "ä"]}
def spin():
    while True: pass
def hoard():
    x = []
    while True: x.append(bytearray(1 << 20))
def leave():
    import os; os._exit(3)
def long(): return "x" * 10**7
def odd(): return object()
"""


def test_a_worker_answers_keeps_state_and_reports_errors(box):
    with box.worker(SOURCE) as worker:
        assert worker.call("twice", 21).value == 42
        assert worker.call("twice", x="ab").value == "abab"
        assert [worker.call("note", n).value for n in range(3)] == [1, 2, 3]
        said = worker.call("say")
        assert said.stdout == "printed\n" and said.value == {"a": [1, None, "ä"]}
        failed = worker.call("fail")
        assert failed.status == "error" and failed.error == "ValueError: no" and "tools.py" in failed.traceback
        assert worker.call("none").error.startswith("NameError")
        assert worker.execute("ans = twice(4) + 1").value == 9
        assert worker.call("odd").status == "error" and worker.call("long").status == "error"
        assert worker.call("twice", 1).ok


@pytest.mark.parametrize("function, status", [("spin", "timeout"), ("hoard", "memory"), ("leave", "killed")])
def test_a_call_that_breaks_a_limit_ends_the_interpreter_and_the_next_starts_anew(box, function, status):
    with box.worker(SOURCE, timeout_s=3) as worker:
        worker.call("note", 1)
        start = time.monotonic()
        answer = worker.call(function, timeout_s=0.3 if status == "timeout" else None)
        assert answer.status in (status, "error" if status == "memory" else status)
        assert time.monotonic() - start < 3
        if answer.status != "error":
            assert worker.call("note", 1).value == 1


def test_source_that_fails_or_hangs_is_told_at_the_start(box):
    with pytest.raises(SandboxError, match="SyntaxError"):
        box.worker("def f(:")
    with pytest.raises(SandboxError, match="too long"):
        box.worker("while True: pass", startup_s=0.3)
    with pytest.raises(ConfigError, match="not visible"):
        box.worker("", paths=["/opt/elsewhere"])


def test_arguments_must_be_data(box):
    with box.worker(SOURCE) as worker:
        with pytest.raises(ConfigError, match="JSON"):
            worker.call("twice", object())


def test_warm_calls_are_quick(box):
    with box.worker(SOURCE) as worker:
        worker.call("twice", 1)
        start = time.perf_counter()
        for n in range(240):
            assert worker.call("twice", n).value == 2 * n
        assert time.perf_counter() - start < 2.0


class _Counting:
    """A sandbox that counts its runs and answers slowly."""

    def __init__(self, status="ok", delay=0.0):
        self.policy, self.level, self.runs, self.status, self.delay = Policy(), "strict", 0, status, delay

    def run(self, steps, files=None, collect=()):
        self.runs += 1
        time.sleep(self.delay)
        step = StepResult(self.status, 0, None, 0.1, 0.1, 1.0, b"out\xff", b"err")
        return ExecResult(self.status, (step,), {"a": b"\0\n\n"}, {"b": "no such file"}, "strict", 0.2)


def test_equal_runs_are_answered_from_the_cache(tmp_path):
    cache, box = ExecCache(tmp_path), _Counting()
    first = cache.run(box, [Step(["true"])], {"f": "x"})
    again = ExecCache(tmp_path).run(box, [Step(["true"])], {"f": b"x"})
    assert box.runs == 1 and again.cached and not first.cached
    assert again.steps == first.steps and again.artifacts == first.artifacts and again.refused == first.refused
    cache.run(box, [Step(["true"])], {"f": "y"})
    cache.run(box, [Step(["true", "1"])], {"f": "x"})
    cache.run(box, [Step(["true"])], {"f": "x"}, extra="another device")
    assert box.runs == 4
    box.policy = Policy(mem_mb=77)
    cache.run(box, [Step(["true"])], {"f": "x"})
    assert box.runs == 5


def test_a_timeout_answers_only_runs_with_no_more_time(tmp_path):
    cache, box = ExecCache(tmp_path), _Counting("timeout")
    for wall, runs in ((2, 1), (1, 1), (2, 1), (3, 2), (2.5, 2)):
        assert cache.run(box, [Step(["true"], wall_s=wall)]).status == "timeout"
        assert box.runs == runs


@pytest.mark.parametrize("status", ["sandbox_error", "killed", "tool_missing"])
def test_what_says_more_of_the_machine_is_not_kept(tmp_path, status):
    cache, box = ExecCache(tmp_path), _Counting(status)
    for _ in range(2):
        cache.run(box, [Step(["true"])])
    assert box.runs == 2


def test_one_run_for_many_who_ask_at_once(tmp_path):
    cache, box = ExecCache(tmp_path), _Counting(delay=0.1)
    threads = [threading.Thread(target=cache.run, args=(box, [Step(["true"])])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert box.runs == 1


def test_a_torn_result_is_run_again_and_a_full_cache_forgets_the_oldest(tmp_path):
    cache, box = ExecCache(tmp_path), _Counting()
    cache.run(box, [Step(["true"])])
    for place in (tmp_path / "results").rglob("*"):
        if place.is_file():
            place.write_bytes(b"torn")
    cache.run(box, [Step(["true"])])
    assert box.runs == 2
    cache.max_bytes = 1000
    for n in range(20):
        cache.run(box, [Step(["true", str(n)])])
    size = sum(p.stat().st_size for p in (tmp_path / "results").rglob("*") if p.is_file())
    assert 0 < size <= 1200
    assert cache.run(box, [Step(["true", "19"])]).cached


def test_the_pool_is_lazy_ordered_and_passes_errors_on():
    read = []

    def jobs():
        for n in range(100):
            read.append(n)
            yield n

    with ExecPool(2, exclusive={"gpu0": 1}) as pool:
        results = pool.imap(lambda n: n * n, jobs(), ahead=4)
        assert next(results) == 0 and len(read) <= 6
        results.close()
        assert sorted(pool.imap(lambda n: n * n, range(9), ordered=False)) == [n * n for n in range(9)]
        counts = []
        assert list(pool.imap(str, range(3), progress=counts.append)) == ["0", "1", "2"] and counts == [1, 2, 3]
        with pytest.raises(ZeroDivisionError):
            list(pool.imap(lambda n: 1 // n, [1, 0, 1]))
        with pytest.raises(ConfigError, match="gpu1"):
            with pool.holding("gpu1"):
                pass
        inside = []

        def alone(n):
            with pool.holding("gpu0"):
                inside.append(1)
                most = len(inside)
                time.sleep(0.01)
                inside.pop()
                return most

        assert set(pool.imap(alone, range(6))) == {1}


def test_tools_say_who_they_are_and_how_to_get_them(monkeypatch):
    found = tool("unshare")
    assert found.path.endswith("unshare") and len(found.digest) == 16 and "2." in found.version
    monkeypatch.setattr("core.execution.tools.shutil.which", lambda *a, **k: None)
    with pytest.raises(ToolMissing, match=r"iverilog not found \(Debian package: iverilog\). RTL compile checks need"):
        tool("iverilog")
