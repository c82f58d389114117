"""The RTL demo's handlers, called as the page calls them, and one round in a browser."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")

from apps.rtl import RtlPipeline  # noqa: E402
from apps.rtl.recorded import examples  # noqa: E402
from benchmarks.cheats import CHEATS, HONEST, problem  # noqa: E402
from core.execution.tools import has  # noqa: E402
from demos import rtl  # noqa: E402

pytestmark = pytest.mark.skipif(not has("iverilog"), reason="Icarus Verilog is absent (Debian package: iverilog)")


@pytest.fixture(scope="module")
def page():
    return rtl.Page(RtlPipeline.from_pretrained("embedded", sim_timeout_s=5.0))


def fields(page, index=0):
    name = list(page.tasks)[index]
    return (name, *page.fill(name))


@pytest.mark.parametrize("index", range(len(examples())))
def test_every_recorded_task_fails_once_and_is_repaired(page, index):
    shown = list(page.write(*fields(page, index), 2))
    assert len(shown) == 3, "a waiting pane, the wrong attempt, the repaired one"
    _, code, wave, verdict, trace, ran, data = shown[1]
    assert "differs from the reference" in verdict and wave.startswith("<svg") and "got" in wave
    assert len(page.zoom(data, 3)) < len(page.zoom(data, 60)) and page.zoom(data, 12) == wave
    banner, code, wave, verdict, trace, ran, again = shown[2]
    assert again == data and "Nothing was simulated" in page.zoom(None, 3)
    assert banner == "" and "passes" in verdict and "Where the first attempt differed" in wave
    assert trace.count("<details") == 2 and "strict" in ran and "Icarus" in ran
    assert rtl.plain(code).startswith("module TopModule")


def test_code_of_ones_own_is_checked_and_bad_lines_are_marked(page):
    p = problem()
    own = (rtl.OWN, p.spec, "module TopModule (input clk, input d, output reg q);", p.testbench, p.reference)
    assert "passes" in page.check(*own, HONEST["the obvious way"])[3]
    shown = page.check(*own, "module TopModule (input clk, input d, output reg q);\n  always @(posedge clk) q <= e;\n"
                       "endmodule")  # fmt: skip
    assert "unknown name" in shown[3] and 'background:#d3333322"' in shown[1] and "No waveform" in shown[2]
    refused = page.check(*own, CHEATS["leaves at once"])[3]
    assert refused.count("refused by the policy") == 1 and "$finish" in refused
    assert "holds no module" in page.check(*own, "I cannot help.")[3]
    hostile = page.check(*own, "module TopModule; wire \\<script>alert(1)</script> ; endmodule")
    assert "<script>" not in "".join(hostile[:6])


def test_errors_are_shown_in_the_librarys_words(page):
    assert "no specification" in list(page.write(rtl.OWN, " ", "", "", ""))[-1][0]
    unknown = list(page.write(rtl.OWN, "A module that nobody recorded.", "", "", ""))[-1][0]
    assert "not recorded" in unknown and "--run" in unknown
    assert "no code to check" in page.check(*fields(page), "")[0]
    assert "no &#x27;module&#x27;" in page.check(rtl.OWN, "x", "input a;", "", "", "module a; endmodule")[0]
    assert "nothing to score" in page.evaluate(None)[0]


def test_cost_and_schematic(page):
    if not (has("yosys") and has("dot")):
        pytest.skip("yosys or graphviz is absent (Debian packages: yosys, graphviz)")
    code = examples()[0].reference
    assert "flip-flops, reference" in page.cost(code, code)
    assert page.schematic(code).startswith('<img alt="schematic"') and "<svg" not in page.schematic(code)
    assert "cannot synthesise" in page.cost("module a(input x); b c(x); endmodule", "")
    assert "nothing" in page.schematic("wire x;") or "no module" in page.schematic("wire x;")
    assert "no code" in page.cost(" ", "")


def test_an_upload_is_scored(page, tmp_path):
    p = problem()
    row = {"spec": p.spec, "reference": p.reference, "reference_top": "RefModule", "testbench": p.testbench}
    rows = [{**row, "prediction": HONEST["the obvious way"]}, {**row, "prediction": [CHEATS["is constant"]] * 2}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    banner, metrics, problems, report = page.evaluate(str(file))
    assert banner == "" and ["pass@1", "50.00% [0.00, 100.00]", 2] in metrics and json.load(open(report))
    assert [r[1] for r in problems] == [".", "RR"]
    file.write_text(json.dumps(row) + "\n")
    assert "no prediction" in page.evaluate(str(file))[0]


@pytest.mark.browser
def test_a_person_sees_the_repair(open_page):
    page, problems = open_page(rtl.build(RtlPipeline.from_pretrained("embedded")))
    page.set_default_timeout(60_000)
    page.get_by_role("button", name="Write and check").click()
    page.get_by_text("Where the first attempt differed").wait_for()
    assert page.locator("svg.graft-wave").is_visible()
    page.get_by_role("tab", name="Repair trace").click()
    page.get_by_text("attempt 1: function").wait_for()
    if has("yosys") and has("dot"):
        page.get_by_role("tab", name="Schematic").click()
        page.get_by_role("button", name="Draw").click()
        page.locator("img[alt=schematic]").wait_for()
    page.get_by_label("Code of your own").fill("module TopModule (input clk);\nendmodule")
    page.get_by_role("button", name="Check my code").click()
    page.get_by_text("refused by the policy").first.wait_for()
    box = page.get_by_label("Task", exact=True)
    box.click()
    box.fill(rtl.OWN)
    box.press("Enter")
    page.get_by_text("Nothing was checked yet").wait_for()
    assert not page.get_by_text("refused by the policy").count(), "another task's verdict is gone"
    assert problems == []
