"""The readers, on small files in each layout, and what they say about bad rows."""

from __future__ import annotations

import json

import pytest

from apps.rtl import load_data
from apps.rtl.example import RtlExample, to_jsonl
from benchmarks.cheats import problem
from core.errors import ConfigError, DataError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else "".join(json.dumps(row) + "\n" for row in text))
    return path


def test_jsonl_goes_there_and_back(tmp_path):
    file = write(tmp_path / "train.jsonl", to_jsonl([problem(), RtlExample("Do nothing.", top="M")]))
    first, second = load_data(tmp_path)
    assert first == problem() and second.spec == "Do nothing." and load_data(file, limit=1) == [first]


def test_the_top_follows_from_the_header(tmp_path):
    rows = [{"spec": "An inverter.", "header": "module inv (input a, output y);"}]
    (example,) = load_data(write(tmp_path / "a.jsonl", rows))
    assert example.top == "inv"


@pytest.mark.parametrize(
    "row, part",
    [
        ({"header": "module a;"}, "spec"),
        ({"spec": "x", "header": "no header"}, "no 'module'"),
        ({"spec": "x", "header": "module a;", "top": "b"}, "another module"),
        ({"spec": "x", "reference": "assign a = b;"}, "reference has no module"),
        ({"spec": "x", "testbench": "module bench; endmodule"}, "no module 'tb'"),
        ({"spec": "x", "testbenches": ""}, "unknown field"),
        ({"spec": 3}, "wrong value"),
        ({"spec": "x", "files": {"a": 1}}, "wrong value"),
        ([1], "not an object"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, row, part):
    file = write(tmp_path / "a.jsonl", [{"spec": "fine"}, row])
    with pytest.raises(DataError, match=part) as caught:
        load_data(file)
    assert "a.jsonl:2" in str(caught.value)


def test_bad_rows_can_be_skipped(tmp_path):
    class Skipped:
        def __init__(self):
            self.errors = []

        def handle(self, error):
            self.errors.append(error)

    skipped = Skipped()
    file = write(tmp_path / "a.jsonl", '{"spec": "x"}\n{broken\n{"spec": ""}\n')
    assert len(load_data(file, on_bad=skipped)) == 1 and len(skipped.errors) == 2


def test_verilogeval_folders(tmp_path):
    folder = tmp_path / "dataset_code-complete-iccad2023"
    p = problem()
    for end, text in (("prompt.txt", "Complete it.\nmodule TopModule (input clk, input d, output q);"),
                      ("ref.sv", p.reference), ("test.sv", p.testbench),
                      ("ifc.txt", "module TopModule (input clk, input d, output q);")):  # fmt: skip
        write(folder / f"Prob001_dff_{end}", text)
    (example,) = load_data(tmp_path, "verilogeval", task="completion")
    assert (
        example.id == "Prob001_dff" and example.header.startswith("module TopModule") and example.testbench_top == "tb"
    )
    with pytest.raises(DataError, match="ProbNNN"):
        load_data(tmp_path, "verilogeval", task="spec")
    with pytest.raises(ConfigError, match="completion"):
        load_data(tmp_path, "verilogeval", task="complete")


def test_verilogeval_version_1(tmp_path):
    row = {"task_id": "dff", "prompt": "module top_module (input clk, input d, output reg q);",
           "canonical_solution": "  always @(posedge clk) q <= d;\nendmodule",
           "test": problem().testbench.replace("TopModule", "top_module")}  # fmt: skip
    file = write(tmp_path / "VerilogEval_Human.jsonl", [row])
    words = write(tmp_path / "d.jsonl", [{"task_id": "dff", "detail_description": "A flip-flop."}])
    (example,) = load_data(file, "verilogeval_v1", descriptions=str(words))
    assert example.top == "top_module" == example.reference_top and example.spec == "A flip-flop."
    assert example.reference.startswith("module top_module")
    with pytest.raises(DataError, match="canonical_solution"):
        load_data(write(tmp_path / "b.jsonl", [{"task_id": "x", "prompt": ""}]), "verilogeval_v1")


def test_rtllm_folders(tmp_path):
    place = tmp_path / "Arithmetic" / "Adder" / "add"
    write(place / "design_description.txt", "Add.")
    write(place / "testbench.v", "module add_tb; add uut (.a(1'b0)); endmodule")
    write(place / "verified_add.v", "module verified_add (input a); endmodule")
    write(place / "reference.dat", "00\n")
    (example,) = load_data(tmp_path, "rtllm")
    assert (example.top, example.reference_top, example.testbench_top) == ("add", "verified_add", "add_tb")
    assert example.files == {"reference.dat": "00\n"} and example.split == "Arithmetic/Adder"
    with pytest.raises(DataError, match="no designs"):
        load_data(tmp_path / "Arithmetic" / "Adder" / "add" / "..", "asserteval")


def test_rtlcoder(tmp_path):
    rows = [{"Instruction": "Invert.", "Input": "", "Response": ["bad", "module inv(input a, output y); endmodule"],
             "Score": [0.0, 1.0]}, {"Instruction": "x", "Response": 3}]  # fmt: skip
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="Response"):
        load_data(file, "rtlcoder")
    (example,) = load_data(file, "rtlcoder", limit=1)
    assert example.top == "inv" and example.testbench is None


def test_asserteval(tmp_path):
    write(tmp_path / "rtl" / "i2c" / "i2c.v", "module i2c (input clk); endmodule")
    write(tmp_path / "rtl" / "uart" / "uart.vhd", "entity uart is end;")
    write(tmp_path / "spec" / "i2c.txt", "An I2C core.")
    first, second = load_data(tmp_path, "asserteval")
    assert first.top == "i2c" and first.spec == "An I2C core." and second.family == "vhdl"


def test_the_shared_sets_have_the_sizes_that_they_say(shared_data):
    assert len(load_data(shared_data / "rtl" / "rtllm_v2", "rtllm")) == 30
    assert len(load_data(shared_data / "rtl" / "verilog_eval_v2", "verilogeval")) == 156
