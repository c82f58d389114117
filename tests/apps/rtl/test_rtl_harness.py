"""The verdict: cheats get none, honest modules do, and the official rules are followed to the letter."""

from __future__ import annotations

import dataclasses

import pytest

from apps.rtl import RtlHarness, load_data
from apps.rtl.engines import Limits
from apps.rtl.example import completed
from apps.rtl.harness import reference_as_candidate
from apps.rtl.private import plain_name, private_bench, protocol, renonced
from apps.rtl.verdict import letter_v2, passed_v1
from benchmarks.cheats import CHEATS, HONEST, problem
from core.errors import ConfigError, DataError
from core.execution.tools import has

needs_iverilog = pytest.mark.skipif(not has("iverilog"), reason="Icarus Verilog is absent (Debian package: iverilog)")
QUICK = Limits(compile_s=10, simulate_s=1.0)


@pytest.fixture(scope="module")
def harness():
    if not has("iverilog"):
        pytest.skip("Icarus Verilog is absent (Debian package: iverilog)")
    return RtlHarness(limits=QUICK)


@pytest.fixture(scope="module")
def stock():
    return RtlHarness(mode="v2", limits=QUICK)


def test_a_sandbox_that_is_stopped_before_its_first_step_is_an_error_of_the_run(harness, monkeypatch):
    from core.execution.policy import ExecResult

    harness.facts(problem())
    monkeypatch.setattr("apps.rtl.harness.RtlHarness._run", lambda *_: ExecResult("timeout"))
    verdict = harness.verify(problem(), reference_as_candidate(problem()) + "// stopped\n")
    assert verdict.letter == "E" and "before its first step: timeout" in verdict.detail


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_gets_no_pass(harness, name):
    verdict = harness.verify(problem(), CHEATS[name])
    assert not verdict.passed and verdict.letter not in "EI", verdict.meaning
    assert verdict.score < 1


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_module_passes(harness, name):
    verdict = harness.verify(problem(), HONEST[name])
    assert verdict.passed and verdict.score == 1 and verdict.samples == 99, verdict.meaning


def test_the_stock_rules_accept_many_of_the_cheats(harness, stock):
    accepted = [n for n in ("reads the reference by its full name", "leaves at once", "instantiates the reference")
                if stock.verify(problem(), CHEATS[n]).passed]  # fmt: skip
    assert len(accepted) == 3


def test_a_difference_is_counted_and_located(harness):
    verdict = harness.verify(problem(), CHEATS["is constant"], wave=True)
    assert (verdict.letter, verdict.samples, verdict.mismatch["signal"]) == ("R", 99, "q")
    assert 0 < verdict.mismatches < 99 and 0 < verdict.score < 1
    assert verdict.wave.startswith(b"$date") and verdict.mismatch["time"] > 0


def test_compile_errors_carry_their_lines(harness):
    code = "module TopModule (input clk, input d, output reg q);\n  always @(posedge clk) q <= nowhere;\nendmodule\n"
    verdict = harness.verify(problem(), code)
    assert verdict.letter == "p" and [d.line for d in verdict.diagnostics if d.error][0] == 2
    assert harness.verify(problem(), code.replace("nowhere", "d +")).letter == "S"
    assert harness.verify(problem(), code.replace("output reg q", "output q").replace("nowhere", "d")).letter == "w"


def test_a_problem_whose_reference_fails_is_invalid_and_never_the_models_fault(harness):
    broken = dataclasses.replace(problem(), reference=problem().reference.replace("q <= d", "q <= nowhere"))
    verdict = harness.verify(broken, HONEST["the obvious way"])
    assert verdict.letter == "I" and "reference itself fails" in verdict.detail
    silent = dataclasses.replace(problem(), testbench="module tb; initial $finish; endmodule")
    assert "reports neither" in harness.verify(silent, HONEST["the obvious way"]).detail


def test_without_a_testbench_an_answer_is_compiled(harness):
    plain = completed(dataclasses.replace(problem(), testbench=None, reference=None))
    assert harness.verify(plain, HONEST["the obvious way"]).passed
    assert harness.verify(plain, "module TopModule; wire a = b; endmodule").letter == "p"


@needs_iverilog
def test_known_verdicts_come_from_the_cache(tmp_path):
    first = RtlHarness(limits=QUICK, cache=tmp_path)
    assert not first.verify(problem(), CHEATS["is constant"]).cached
    again = RtlHarness(limits=QUICK, cache=tmp_path).verify(problem(), CHEATS["is constant"])
    assert again.cached and again.letter == "R"
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0


def test_the_private_bench_hides_every_name_and_can_be_read_back():
    bench = private_bench(problem(), "n0")
    text = "".join(bench.before.values())
    assert "RefModule_n0 good1_n0" in text and "TopModule top_module1_n0" in text and "Mismatches_n0: " in text
    assert "module tb_n0" in text and "graft_n0" in bench.after["wrap.sv"]
    assert plain_name(text, "n0").startswith(problem().testbench) and protocol(problem().testbench) == "count"


def test_a_bench_under_another_nonce_is_the_bench_made_with_it():
    assert renonced(private_bench(problem(), "n0"), "n1") == private_bench(problem(), "n1")


def test_version_2_sorts_logs_as_its_authors_do():
    cases = {
        "a.sv:3: syntax error\nMismatches: 0 in 5 samples": "S",
        "error: This assignment requires an explicit cast": "e",
        "error: Sized numeric constant must have a size greater than zero": "0",
        "warning: always_comb process has no sensitivities.": "n",
        "a.sv:1: error: q is not a valid l-value; q is declared here as wire.": "w",
        "error: Unknown module type: Foo": "m",
        "error: Unable to bind wire/reg/memory `clk' in `tb.x'": "c",
        "error: Unable to bind wire/reg/memory `foo' in `tb.x'\nMismatches: 0 in 5 samples": "p",
        "TIMEOUT\nMismatches: 0 in 5 samples": "T",
        "some error\nMismatches: 0 in 5 samples": "C",
        "Mismatches: 0 in 5 samples": ".",
        " Mismatches: 0 in 5 samples": "R",
        "Mismatches: 2 in 5 samples": "R",
        "": "R",
    }
    for log, letter in cases.items():
        assert letter_v2(log, "always @(posedge clk)")[0] == letter, log
    assert letter_v2("Mismatches: 2 in 5 samples", "always @(posedge reset)") == ("r", 2, 5)


def test_version_1_counts_any_word_on_the_error_stream():
    assert passed_v1("Mismatches: 0 in 5 samples", "") == (True, "passed")
    assert passed_v1("Mismatches: 0 in 5 samples", "warning")[1] == "failed: compile error."
    assert passed_v1("Mismatches: 3 in 5 samples", "")[1] == "failed: 3 out of 5 samples."
    assert passed_v1("", "x: syntax error")[1] == "failed: syntax error."
    assert passed_v1("", "")[1] == "failed: info string not matched."


def test_unknown_modes_and_missing_testbenches_are_errors(stock):
    with pytest.raises(ConfigError, match="lenient"):
        RtlHarness(mode="lenient")
    with pytest.raises(DataError, match="testbench"):
        stock.verify(dataclasses.replace(problem(), testbench=None), HONEST["the obvious way"])


@needs_iverilog
def test_references_of_the_public_sets_pass(shared_data, harness):
    rtl = shared_data / "rtl"
    for task in ("spec", "completion"):
        problems = load_data(rtl / "verilog_eval_v2", "verilogeval", task=task)
        assert len(problems) == 156
        for example in problems[:60:20]:
            verdict = harness.verify(example, reference_as_candidate(example))
            assert verdict.passed, (example.id, verdict.meaning)
    designs = {e.id: e for e in load_data(rtl / "rtllm_v2", "rtllm")}
    for name in ("accu", "adder_pipe_64bit", "adder_bcd", "multi_booth_8bit"):
        assert harness.verify(designs[name], reference_as_candidate(designs[name])).passed, name
    wrong = reference_as_candidate(designs["accu"]).replace("'d3", "'d2")
    assert not harness.verify(designs["accu"], wrong).passed
