"""HLS bugs: reading, planting, naming, and what sanitizers see of them."""

from __future__ import annotations

import json

import pytest

from apps.rtl.hls.dataset import TYPES, Edit, HlsBug, read_bugs
from apps.rtl.hls.inject import inject, tally
from apps.rtl.hls.oracle import observe
from apps.rtl.hls.planted import FUNCTIONS, plant, planted_bugs
from apps.rtl.hls.rules import logic_finding, pragma_findings
from apps.rtl.hls.task import examples, score
from core.errors import DataError
from core.execution.tools import has

SUM = "int total(int *a, int n)\n{\n  int s = 0;\n  for (int i = 0; i < n; i++)\n    s += a[i];\n  return s;\n}\n"


def bug(*edits: Edit, source: str = SUM) -> HlsBug:
    return HlsBug("S", "total", source, tuple(e.kind for e in edits), edits)


def test_edits_go_in_exactly_or_without_white_space_or_not():
    exact = inject(bug(Edit("INF", "i < n", "i <= n")))
    assert (exact.how, exact.lines) == ("exact", (4,)) and "i <= n" in exact.code
    loose = inject(bug(Edit("INF", "for(int i = 0; i < n;i++)\ns+=a[i];", "for (;;);")))
    assert (loose.how, loose.lines) == ("normalised", (4,)) and "for (;;);\n  return s" in loose.code
    none = inject(bug(Edit("INF", "for (...) { ... }", "x")))
    assert none.how == "unmatched" and none.code == SUM and none.missing.startswith("for (...)")
    both = inject(bug(Edit("ZERO", "int s = 0", "int s = 1"), Edit("INF", "i < n", "i <= n")))
    assert both.lines == (3, 4)
    counts, missing = tally([bug(Edit("INF", "i < n", "i <= n")), bug(Edit("INF", "nowhere", "x"))])
    assert counts == {"exact": 1, "unmatched": 1} and len(missing) == 1


@pytest.mark.parametrize(
    "pragma, kind",
    [
        ("#pragma HLS unroll factor=2", "ILNU"), ("#pragma HLS dataflow", "DFP"), ("#pragma HLS pipeline II=1", "MLP"),
        ("#pragma HLS array_partition variable=a dim=3", "DID"), ("#pragma HLS INTERFACE m_axi port=a", "RAMB"),
        ("#pragma HLS array_partition variable=a factor=5", "FND"), ("#pragma HLS interface mode=bram port=n", "SMA"),
        ("#pragma HLS array_partition type=complete variable=a", "APT"),
        ("#pragma HLS interface port=a mode=ap_fifo", "IDAP"), ("#pragma HLS interface port=a ap_none", "AMS"),
    ],
)  # fmt: skip
def test_pragmas_are_named_with_their_lines(pragma, kind):
    (found,) = pragma_findings(SUM.replace("  for", f"  {pragma}\n  for"))
    assert (found.kind, found.line) == (kind, 4)
    assert pragma_findings(SUM) == []


@pytest.mark.parametrize(
    "before, after, kind",
    [
        ("i < n", "i <= n", "INF"), ("a[i]", "a[i + 1]", "OOB"), ("int s = 0", "short s = 0", "USE"),
        ("s += a[i]", "s += a[i] << 3", "SHFT"), ("a[i]", "a[n]", "BUF"), ("return s", "return 0", "ZERO"),
        ("    s += a[i];", "    // s += a[i];", "INIT"),
    ],
)  # fmt: skip
def test_logic_changes_are_named_with_their_lines(before, after, kind):
    found = logic_finding(SUM, SUM.replace(before, after))
    assert found.kind == kind and found.line == next(n for n, x in enumerate(SUM.splitlines(), 1) if before in x)
    assert logic_finding(SUM, SUM) is None


@pytest.mark.skipif(not has("g++"), reason="g++ is absent (Debian package: g++)")
def test_sanitizers_and_outputs_confirm_bugs():
    driver = 'int main() { int a[4] = {1, 2, 3, 4}; printf("%d\\n", total(a, 4)); return 0; }'
    assert observe(SUM, SUM, driver).kind == ""
    cases = {"OOB": ("i < n", "i <= n"), "INF": ("i++", "i += 0"), "differs": ("int s = 0", "int s = 1"),
             "SHFT": ("s += a[i]", "s += a[i] << (n * 10)")}  # fmt: skip
    for kind, (before, after) in cases.items():
        found = observe(SUM, SUM.replace(before, after), driver, seconds=1)
        assert found.kind == kind, (kind, found)
    assert observe("int broken(", SUM, driver).kind == "unjudged"


def test_the_task_and_its_score():
    (task,) = examples([bug(Edit("INF", "i < n", "i <= n")), bug(Edit("INF", "x y", "z"))])
    assert "  4   for (int i = 0; i <= n; i++)" in task.spec and task.answer == "type: INF\nline: 4\nrepair: i < n"
    right = score("Type: INF\nline: 5\nrepair: i  <n", task.answer)
    assert (right.kind, right.line, right.repair) == (True, True, True)
    wrong = score("type: OOB, INF\nline: 9\nrepair: i > n", task.answer)
    assert (wrong.kind, wrong.line, wrong.repair) == (False, False, False)
    assert score("", task.answer) == score("type:\nline: none", task.answer)
    many = score("type: INF\nline: " + " ".join(map(str, range(1, 30))), task.answer)
    assert many.kind and not many.line, "naming every line finds none"
    assert list(examples([bug(Edit("INF", "i < n", "i <= n"))], most=9)) == []


def test_splits_share_no_design():
    bugs = list(planted_bugs())
    sides = {side: {e.top for e in examples(bugs, split=side)} for side in ("train", "test")}
    assert sides["train"] and sides["test"] and not sides["train"] & sides["test"]
    assert sum(len(list(examples(bugs, split=side))) for side in sides) == len(list(examples(bugs))) == len(bugs)


def test_planted_bugs_are_of_every_type_and_the_repair_restores_the_source():
    bugs = list(planted_bugs())
    assert {b.kinds[0] for b in bugs} == set(TYPES)
    for one in bugs:
        planted = inject(one)
        assert planted.how == "exact" and planted.code != one.source
        edit = one.edits[0]
        assert planted.code.replace(edit.faulty, edit.original, 1) == one.source
    assert list(plant("f", "int f(int x)\n{\n  return x;\n}\n"))[0].kinds == ("ZERO",)


@pytest.mark.skipif(not has("g++"), reason="g++ is absent (Debian package: g++)")
def test_sanitizers_agree_with_what_was_planted():
    driver = (
        "int main() { int a[64], b[64]; for (int i = 0; i < 64; i++) a[i] = b[i] = 100 * i;"
        ' printf("%d\\n", dot(a, b, 64)); return 0; }'
    )
    seen = {}
    for one in plant("dot", FUNCTIONS["dot"]):
        if one.kinds[0] in ("OOB", "ZERO"):
            seen[one.kinds[0]] = observe(one.source, inject(one).code, driver, seconds=1).kind
    assert seen == {"OOB": "OOB", "ZERO": "differs"}


def test_both_layouts_are_read_and_bad_ones_named(tmp_path):
    text = json.dumps({"Error Size": 1, "Error Specification": [
        {"Error Type": "INF", "Original Code": "i < n", "Faulty Code": "i <= n"}]})  # fmt: skip
    function = tmp_path / "repo" / "Suite" / "total"
    for place, content in (("Source_Code/total.cpp", SUM), ("Bugs/bug_INF.txt", text)):
        (function / place).parent.mkdir(parents=True, exist_ok=True)
        (function / place).write_text(content)
    row = {
        "suite": "Suite",
        "design": "total",
        "sources": {"total.cpp": SUM},
        "bugs": [{"types": ["INF"], "text": text}],
    }
    (tmp_path / "bugs.jsonl").write_text(json.dumps(row) + "\n")
    assert list(read_bugs(tmp_path / "repo")) == list(read_bugs(tmp_path / "bugs.jsonl"))
    (function / "Bugs" / "bug_INF.txt").write_text("{}")
    with pytest.raises(DataError, match="not a bug description"):
        list(read_bugs(tmp_path / "repo"))
    (tmp_path / "bugs.jsonl").write_text(json.dumps({**row, "bugs": [{"types": ["XYZ"], "text": text}]}) + "\n")
    with pytest.raises(DataError, match="unknown bug type"):
        list(read_bugs(tmp_path / "bugs.jsonl"))


def test_the_counts_of_the_development_data(shared_data):
    counts, _ = tally(read_bugs(shared_data / "rtl" / "chrysalis_hls"))
    assert counts == {"exact": 1763, "normalised": 431, "unmatched": 217}
