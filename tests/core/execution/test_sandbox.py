"""The sandbox: what a run gives back, how each limit ends it, and what is refused."""

from __future__ import annotations

import os
import threading
import time

import pytest

from core.errors import ConfigError, SandboxError
from core.execution import ExecPool, Policy, Sandbox, Step
from core.execution.backends import interpreter
from core.execution.running import parse_result

AVAILABLE = [probe.name for probe in Sandbox.probe() if probe.available]
PYTHON = interpreter()[0]

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no sandbox backend works here (Debian package: bubblewrap)")


@pytest.fixture(params=AVAILABLE)
def box(request):
    return Sandbox(Policy(wall_s=5, level="weak"), request.param)


def script(text: str, **more) -> Step:
    return Step([PYTHON, "-I", "-S", "-c", text], **more)


def test_steps_share_a_folder_and_artifacts_come_back(box):
    done = box.run(
        [script("open('b', 'w').write(open('a/in').read().upper())"), Step(["cat", "b"])],
        files={"a/in": "hello"},
        collect=["b", "none"],
    )
    assert done.ok and done.last.out == "HELLO" and done.artifacts == {"b": b"HELLO"}
    assert done.refused == {"none": "no such file"} and done.level == box.level and not done.cached
    assert [step.rc for step in done.steps] == [0, 0] and done.steps[0].max_rss_mb > 1


def test_a_step_can_depend_on_the_one_before(box):
    done = box.run([Step(["false"]), Step(["echo", "never"], only_if=0), Step(["echo", "always"])])
    assert done.status == "nonzero" and done.steps[1].skipped and done.last.out == "always\n"


def test_exit_codes_signals_and_missing_tools_are_told_apart(box):
    assert box.run([script("raise SystemExit(7)")]).steps[0].rc == 7
    killed = box.run([script("import os; os.kill(os.getpid(), 11)")])
    assert killed.status == "killed" and killed.steps[0].signal == 11 and killed.steps[0].rc is None
    missing = box.run([Step(["no-such-tool-anywhere"])])
    assert missing.status == "tool_missing" and "no-such-tool-anywhere" in missing.last.err


def test_standard_input_of_any_size_arrives(box):
    step = script("import sys; d = sys.stdin.buffer.read(); print(len(d), d[-1:])", stdin=b"x" * 300_000 + b"!")
    assert box.run([step]).last.out == "300001 b'!'\n"
    unread = box.run([script("print(1)", stdin=b"x" * 300_000)])
    assert unread.ok and unread.last.out == "1\n"


def test_the_environment_is_empty_but_for_what_is_needed(box, monkeypatch):
    monkeypatch.setenv("GRAFT_SECRET", "hidden")
    found = box.with_policy(env={"MINE": "yes"}).run([script("import os; print(sorted(os.environ))")]).last.out
    assert "GRAFT_SECRET" not in found and "'MINE'" in found and "'PATH'" in found


def test_output_is_cut_at_the_limit_and_said_to_be(box):
    done = box.with_policy(max_output_kb=8).run([script("print('a' * 100_000)")])
    assert done.status == "output_limit" and done.last.truncated and len(done.last.stdout) <= 8192
    exact = box.with_policy(max_output_kb=8).run([script("import os; os.write(1, b'a' * 8192)")])
    assert exact.ok and not exact.last.truncated


def test_a_limit_ends_a_run_in_time(box):
    start = time.monotonic()
    done = box.run([script("import time; time.sleep(30)", wall_s=0.3)])
    assert done.status == "timeout" and time.monotonic() - start < 5
    cpu = box.with_policy(cpu_s=1, wall_s=60).run([script("while True: pass")])
    assert cpu.status == "timeout" and 0.8 < cpu.last.cpu_s < 2.5


def test_runs_in_threads_do_not_meet(box):
    def run(number: int) -> str:
        return box.run([Step(["cat", "n"])], files={"n": str(number)}).last.out

    with ExecPool(4) as pool:
        assert list(pool.imap(run, range(12))) == [str(n) for n in range(12)]


def test_the_sandbox_survives_the_thread_that_first_used_it(box):
    made = []
    thread = threading.Thread(target=lambda: made.append(box.worker("def f(): return 1")))
    thread.start()
    thread.join()
    time.sleep(0.05)
    with made[0] as worker:
        assert worker.call("f").value == 1


def test_a_level_that_is_not_there_is_refused_and_never_lowered(monkeypatch):
    from core.execution import sandbox

    with pytest.raises(SandboxError, match="only at level 'weak'"):
        Sandbox(Policy(), "rlimit")

    def only_weak(name):
        probe = sandbox.Probe(name, sandbox.backends.backend(name).level, name == "rlimit", "not here")
        return probe

    monkeypatch.setattr(sandbox, "probe_backend", only_weak)
    with pytest.raises(SandboxError, match="no sandbox of level 'strict'"):
        Sandbox.best(Policy())
    weak = Sandbox.best(Policy(level="weak"))
    assert weak.backend == "rlimit" and "bwrap: not here" in weak.why


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a\nb"])
def test_a_file_outside_the_run_folder_is_refused(name):
    box = Sandbox.best(Policy(level="weak"))
    with pytest.raises(ConfigError):
        box.run([Step(["true"])], files={name: "x"})
    with pytest.raises(ConfigError):
        box.run([Step(["true"])], collect=[name])


def test_malformed_policies_and_steps_say_what():
    with pytest.raises(ConfigError, match="wall_s"):
        Policy(wall_s=0)
    with pytest.raises(ConfigError, match="level"):
        Policy(level="strictest")
    with pytest.raises(ConfigError, match="list of words"):
        Step("ls -l")
    with pytest.raises(ConfigError, match="absolute"):
        Policy(ro=("usr",))


@pytest.mark.parametrize("name", [n for n in AVAILABLE if n in ("bwrap", "unshare")])
def test_what_is_visible_may_lie_below_the_temporary_folder(name, tmp_path):
    seen = tmp_path / "package"
    seen.mkdir()
    (seen / "text").write_text("here ")
    for folder in (seen, tmp_path, *list(tmp_path.parents)[:-2]):
        os.chmod(folder, 0o755)
    box = Sandbox(Policy(wall_s=5, ro=(str(seen),)), name)
    text = f"cat {seen}/text; touch {seen}/new || echo kept; touch /tmp/own && echo writes"
    done = box.run([Step(["sh", "-c", text])]).last
    assert done.out.split() == ["here", "kept", "writes"], done


def test_a_result_that_lies_about_its_sizes_is_an_error():
    assert parse_result(b"step ok 0 0.1 0.1 1.0 0 2 0\n\nhi").last.stdout == b"hi"
    for bad in (b"", b"step ok 0 0.1 0.1 1.0 0 9 0\n\nhi", b"step ok 0 0.1 0.1 1.0 0 -1 0\n\nhi", b"what\n\n"):
        with pytest.raises((ValueError, IndexError)):
            parse_result(bad)


def test_nothing_is_left_in_the_temporary_folder(box, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    os.chmod(tmp_path, 0o755)
    for parent in list(tmp_path.parents)[:3]:
        os.chmod(parent, 0o755)
    box.run([Step(["true"])])
    assert list(tmp_path.glob("graft-box-*")) == []
