"""Tokens, kernels, rewriting, launch plans: exact small cases, and every way a plan can be wrong."""

from __future__ import annotations

import pytest

from apps.cuda.plan import PlanError, Signature, Spec, evaluate, parse_plan, resolve
from apps.cuda.search import knobs, turned
from apps.cuda.source import candidate, extract, for_emulator, kernels, tokens, with_c_linkage

CODE = """#include <cuda_fp16.h>
#define B 256 /* "x" */
template <typename T> __global__ void t(T* x) {}
__global__ void __launch_bounds__(256) add(const float* __restrict__ x, float *y, long long n, const half2 *h) {
  __shared__ float tile[32][33], other[B];
  extern __shared__ __align__(16) unsigned char raw[];
  __shared__ float s;
}
extern "C" __global__ void b() {}
static __global__ void c(int n[]) {}
"""


def test_kernels_and_their_parameters_are_found():
    found = kernels(CODE)
    assert list(found) == ["t", "add", "b", "c"] and found["t"].template and not found["b"].params
    x, y, n, h = found["add"].params
    assert (x.type, x.pointer, x.const, x.text) == ("float", True, True, "const float *")
    assert (y.const, n.type, n.pointer, h.type) == (False, "long long", False, "half2")
    assert found["add"].line == 4 and found["c"].params[0].pointer


def test_tokens_know_their_line_whatever_stands_between():
    text = 'a /* x\ny */ "b\\"c" // d\nR"(e\nf)" g'
    assert [(t.text, t.line) for t in tokens(text)] == [("a", 1), ('"b\\"c"', 2), ('R"(e\nf)"', 3), ("g", 4)]


def test_linkage_and_emulator_keep_every_line_where_it_is():
    linked = with_c_linkage(CODE)
    assert linked.count("\n") == CODE.count("\n") and 'extern "C" __global__ void __launch_bounds__(256) add' in linked
    assert (
        'extern "C"  __global__ void c' in linked
        and 'extern "C" extern' not in linked
        and 'extern "C" template' not in linked
    )
    plain = for_emulator(CODE)
    assert plain.count("\n") == CODE.count("\n") and "#include" not in plain and 'extern "C"' not in plain
    assert "float (&tile) [32][33] = *(float (*) [32][33])simt::shared<float[32][33]>(0)" in plain
    assert "unsigned char* const raw" in plain and "float (&s)" in plain


def test_an_answer_is_taken_apart_and_put_together():
    code, plan = extract(candidate("__global__ void k() {}", '{"launches": []}'))
    assert plan == '{"launches": []}' and "__global__" in code
    fenced = 'So:\n```cuda\n__global__ void k() {}\n```\nand\n```json\n{"launches": [1]}\n```\n'
    assert extract(fenced) == ("__global__ void k() {}\n", '{"launches": [1]}')
    assert extract("no kernel") == ("", "") and extract("") == ("", "")


SIGNATURE = Signature({"x": Spec("float32", (3, 5)), "h": Spec("float16", (4,))}, {"out": Spec("float32", (3, 5))},
                      {"eps": 0.5, "width": 7})  # fmt: skip


def plan(**changes) -> str:
    import json

    launch = {"kernel": "add", "grid": ["(size(x) + 255) // 256"], "block": [256], "args": ["x", "out", "size(x)", "h"]}
    return json.dumps({"launches": [{**launch, **changes}]})


def test_a_plan_becomes_numbers():
    (launch,) = resolve(parse_plan(plan(grid=["x[0]", "max(1, x[-1] - 3)"])), kernels(CODE), SIGNATURE).launches
    assert launch.grid == (3, 2, 1) and launch.block == (256, 1, 1)
    assert launch.args == (("tensor", "x"), ("tensor", "out"), ("int8", 15), ("tensor", "h"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("x[0] * x[1]", 15),
        ("size(x) // 4 % 2", 1),
        ("min(x[1], width) - dims(x)", 3),
        ("-(-size(x) // 4)", 4),
    ],
)
def test_sizes_are_integer_arithmetic(text, value):
    assert evaluate(text, SIGNATURE.numbers, SIGNATURE.tensors) == value


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "x.shape[0]", "2 ** 40", "1.5", "eps", "x[2]", "[1]", "size(nobody)", "1 // 0", "a" * 500,
     "(lambda: 1)()", "2147483648 * 2147483648", True, None],
)  # fmt: skip
def test_nothing_else_is_a_size(text):
    with pytest.raises(PlanError):
        evaluate(text, SIGNATURE.numbers, SIGNATURE.tensors)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernel": "mul"}, "the code has: t, add"), ({"kernel": "t"}, "template"), ({"grid": [0]}, "must be 1 to"),
        ({"grid": [1, 70000]}, "65535"), ({"block": [2048]}, "1024"), ({"block": [64, 32]}, "2048 threads"),
        ({"shared": "size(x) * 100000"}, "232448"), ({"args": ["x"]}, "4 parameters"),
        ({"args": ["y", "out", 1, "h"]}, "a pointer takes one of: x, h, out"),
        ({"args": ["h", "out", 1, "h"]}, "holds float16"), ({"args": ["x", "out", "x", "h"]}, "is a tensor"),
        ({"grid": []}, "1 to 3 sizes"), ({"threads": 3}, "unknown field"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_says_why(changes, said):
    with pytest.raises(PlanError, match=said.replace("(", r"\(")):
        resolve(parse_plan(plan(**changes)), kernels(CODE), SIGNATURE)


SCRATCH = '{"launches": [{"kernel": "k", "grid": [1], "block": [1], "args": []}], "scratch": {"a": 1}}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"launches": []}', '{"launches": [{}]}', '{"kernels": 1}', SCRATCH,
                                  "[" * 50_000])  # fmt: skip
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(PlanError):
        parse_plan(text)


def test_knobs_are_turned_in_plan_and_code():
    text = candidate(
        "#define T 16\n#define U 4\n__global__ void k() {}", '{"sizes": {"T": "16", "n": "3"}, "launches": []}'
    )
    assert knobs(text) == {"T": 16}
    other = turned(text, {"T": 32})
    assert knobs(other) == {"T": 32} and "#define T 32" in other and "#define U 4" in other
