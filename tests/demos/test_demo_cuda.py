"""The CUDA demo's handlers, called as the page calls them, and one round in a browser."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")

from apps.cuda import CudaPipeline  # noqa: E402
from apps.cuda.compiling import toolchain  # noqa: E402
from apps.cuda.recorded import examples  # noqa: E402
from benchmarks.kernels import _PLAN, _RIGHT, CHEATS, candidate, relu  # noqa: E402
from core.execution import ToolMissing  # noqa: E402
from demos import cuda  # noqa: E402
from tests.apps.cuda.test_cuda_harness import CANNOT_EMULATE  # noqa: E402

try:
    toolchain()
    ABSENT = CANNOT_EMULATE
except ToolMissing as error:
    ABSENT = error.what
pytestmark = pytest.mark.skipif(bool(ABSENT), reason=ABSENT)
RIGHT = candidate(_RIGHT, _PLAN)


@pytest.fixture(scope="module")
def page():
    return cuda.Page(CudaPipeline.from_pretrained("embedded", trials=3, gpu="none"))


@pytest.mark.parametrize("index", range(len(examples())))
def test_every_recorded_search_errs_twice_and_then_passes_twice(page, index):
    name = list(page.tasks)[index]
    waiting, slip, wrong, slower, faster = page.search(name, page.fill(name), 4)
    assert "Writing" in waiting[1] and "does not compile" in slip[1] and "b3261e22" in slip[2]
    assert "passes" not in wrong[1] and "No kernel is right yet" in wrong[5]
    assert "passes" in slower[1] and "(best)" in slower[5] and slower[3].count(">right<") == 4
    assert "passes" in faster[1] and faster[5].count("µs") == 2 and faster[5].count("<details>") == 4
    assert "occupancy" in faster[4] and "ptxas" in faster[6] and "strict" in faster[6]
    assert "no GPU was used" in faster[5], "an estimate says that it is one"


def test_a_kernel_of_ones_own_is_checked(page):
    own = (cuda.OWN, relu().reference)
    assert "passes" in page.check(*own, RIGHT)[1]
    wrong = page.check(*own, CHEATS["writes zeros"][1])
    assert "differs from the reference" in wrong[1] and ">wrong<" in wrong[3] and "got | expected" in wrong[3]
    assert "All trials have one shape" not in wrong[3]
    fixed = page.check(cuda.OWN, relu().reference.replace("torch.rand(rows, columns)", "torch.rand(64, 100)"), RIGHT)
    assert "passes" in fixed[1] and "All trials have one shape" in fixed[3]
    refused = page.check(*own, CHEATS["reads the clock"][1])
    assert "refused by the policy" in refused[1] and "clock64" in refused[2] and "Nothing was run" in refused[3]
    hostile = page.check(*own, RIGHT.replace("__global__", "// <script>alert(1)</script>\n__global__"))
    assert "<script>" not in "".join(hostile)
    assert refused[1].count("refused by the policy") == 1, "the verdict is said once"
    assert refused[1].count("kernels do not read clocks") == 1, "and so is its only diagnostic"
    broken = page.check(cuda.OWN, relu().reference.replace("def get_inputs():", "def get_inputs():\n    1 / 0"), RIGHT)
    assert "the reference itself fails" in broken[1] and f"background:{cuda.RED}" not in broken[1]
    flagged = page.check(*own, CHEATS["adds in half precision"][1].replace("x[0]", "x[0]"))
    assert "b3261e" in flagged[1]


def test_errors_are_shown_in_the_librarys_words(page):
    assert "no operator" in list(page.search(cuda.OWN, " "))[-1][0]
    assert "does not define Model" in list(page.search(cuda.OWN, "x = 1"))[-1][0]
    unknown = list(page.search(cuda.OWN, relu().reference))[-1][0]
    assert "not recorded" in unknown and "--run" in unknown
    nothing = page.check(cuda.OWN, relu().reference, "")
    assert "no kernel to check" in nothing[0] and nothing[1:] == cuda.BLANK[1:]
    assert "__global__ function" in page.check(cuda.OWN, relu().reference, "multiply, please")[2]
    assert "nothing to score" in page.evaluate(None)[0] and page.fill("nobody's") == ""


def test_an_upload_is_scored(page, tmp_path):
    row = {"reference": relu().reference, "id": "relu"}
    rows = [{**row, "prediction": RIGHT}, {**row, "prediction": [CHEATS["writes zeros"][1]]}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    banner, metrics, operators, report = page.evaluate(str(file))
    assert banner == "" and ["pass@1", "50.00% [0.00, 100.00]", 2] in metrics and json.load(open(report))
    assert [r[1] for r in operators] == ["passes", "mismatch"]
    file.write_text(json.dumps(row) + "\n")
    assert "no prediction" in page.evaluate(str(file))[0]


@pytest.mark.browser
def test_a_person_sees_the_search(open_page):
    page, problems = open_page(cuda.build(CudaPipeline.from_pretrained("embedded", trials=3, gpu="none")))
    page.set_default_timeout(120_000)
    page.get_by_role("button", name="Search").click()
    page.get_by_text("round 4 (best)").first.wait_for()
    page.get_by_role("tab", name="Checks").click()
    page.get_by_text("relative error").wait_for()
    page.get_by_role("tab", name="Compile log").click()
    page.get_by_text("ptxas info").first.wait_for()
    page.get_by_label("Kernel of your own").fill('/* launch {} */ __global__ void k() { printf("x"); }')
    page.get_by_role("button", name="Check my kernel").click()
    page.get_by_text("refused by the policy").first.wait_for()
    _choose(page, "Operator", cuda.OWN)
    page.get_by_text("Nothing was checked yet").wait_for()
    assert not page.get_by_text("refused by the policy").count(), "another operator's verdict is gone"
    assert problems == []


def _choose(page, label, value):
    box = page.get_by_label(label, exact=True)
    box.click()
    box.fill(value)
    box.press("Enter")
