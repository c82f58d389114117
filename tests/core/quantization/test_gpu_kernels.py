"""The GPU kernels against the reference: layouts and lookups by emulation anywhere, the kernels themselves on a GPU.

Triton kernels also run on a CPU where Triton is installed: TRITON_INTERPRET=1 pytest tests/core/quantization.
"""

import importlib.util
import os
from dataclasses import replace

import pytest
import torch

from core.quantization import QuantizedLinear, parse
from core.quantization.kernels.cuda import w4_a16
from core.quantization.kernels.reference import decode_in_steps

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1")
W4 = ("rtn:4", "rtn:4:g64", "rtn:3:row", "nf4", "bitmod:3", "bitmod:4", "squeezellm:dense", "trilm", "rtn:4:sym:g256")
BYTES = ("rtn:8", "rtn:6:g32", "rtn:8:row:sym", "rtn:4:g32", "bipolar:5:a16")
W8 = ("llm_int8", "qoq", "bitlinear", "abq", "rtn:4:row:a8")


def layer_of(spec: str, inputs: int = 256, outputs: int = 80) -> QuantizedLinear:
    torch.manual_seed(0)
    spec = parse(spec)
    if spec.preset in ("qoq", "abq"):
        spec = replace(spec, objective="weights", solver=parse("rtn").solver, transforms=())
    return QuantizedLinear.from_linear(torch.nn.Linear(inputs, outputs, bias=False), spec)


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize("spec", W4)
def test_the_layout_holds_the_codes(spec):
    layer = layer_of(spec)
    words, both, tables = w4_a16.arrange(layer)
    by_row = w4_a16.book_of(layer.quant) != w4_a16.AFFINE
    assert torch.equal(w4_a16.unfragment(words, by_row), layer.codes())
    assert (both.numel() + tables.numel() > 0) and words.numel() * 32 == 4 * layer.codes().numel()


def permuted(a: int, b: int, selector: int) -> int:
    """The instruction prmt on two words, for selectors without sign replication."""
    joined = (b << 32 | a).to_bytes(8, "little")
    return int.from_bytes(bytes(joined[(selector >> (4 * i)) & 7] for i in range(4)), "little")


def test_a_table_is_read_by_four_nibbles_at_once():
    """`look_up` of the CUDA source, step by step, gives the bf16 levels of four codes."""
    levels = torch.randn(1, 16)
    table = w4_a16.two_byte_tables(levels)[0, 0].view(torch.int32).tolist()
    table = [word & 0xFFFFFFFF for word in table]
    for codes in (0x0000, 0xFEDC, 0x1234, 0x8F70, 0xA5A5):
        eighth, upper = codes & 0x7777, ((codes >> 1) & 0x4444) | 0x3210
        low = permuted(permuted(*table[:2], eighth), permuted(*table[2:4], eighth), upper)
        high = permuted(permuted(*table[4:6], eighth), permuted(*table[6:], eighth), upper)
        pair = [permuted(low, high, 0x5140), permuted(low, high, 0x7362)]
        words = torch.tensor([w - (1 << 32) if w >> 31 else w for w in pair], dtype=torch.int32)
        wanted = [float(levels[0, (codes >> (4 * i)) & 15].bfloat16()) for i in range(4)]
        assert words.view(torch.bfloat16).tolist() == wanted


def test_shapes_fit_the_shared_memory_they_are_given():
    for limit in (99 * 1024, 163 * 1024, 227 * 1024):
        for rows in (1, 8, 9, 16):
            for inputs in (128, 1280, 4096, 14336):
                for halves in (1, 2):
                    shape, held = w4_a16.shape_of(rows, inputs, limit, halves)
                    assert shape.shared_bytes(rows, inputs, held, halves) <= limit


@pytest.mark.parametrize(
    "rows,inputs,outputs,along",
    (
        (16, 14336, 4096, True),  # 128 steps of two tiles for 132 blocks, rows too long for shared memory
        (16, 14336, 8192, False),  # two steps for most blocks
        (1, 14336, 4096, False),  # the one row lies in shared memory
    ),
)
def test_sums_are_made_on_the_way_where_a_block_has_one_step(monkeypatch, rows, inputs, outputs, along):
    monkeypatch.setattr(w4_a16, "processors", lambda device: 132)
    monkeypatch.setattr(w4_a16, "shared_limit", lambda device: 227 * 1024)
    w4_a16._shape_on.cache_clear()
    shape, held = w4_a16._shape_on(0, rows, inputs, outputs, 1)
    w4_a16._shape_on.cache_clear()
    assert shape.along is along and held is (rows == 1)


@interpreted
@pytest.mark.parametrize("spec", W4)
def test_the_triton_twin_reads_the_layout(spec):
    from core.quantization.kernels.triton import w4

    layer = layer_of(spec)
    wanted, layout = layer.dense_weight(), w4_a16.arrange(layer)
    book = w4_a16.book_of(layer.quant)
    assert relative(w4.decode(*layout, book, torch.float32), wanted) < 3e-4
    for rows in (1, 17):
        x = torch.randn(rows, 256).half()
        assert relative(w4.multiply(x, *layout, book), x.float() @ wanted.t()) < 1e-3


@interpreted
@pytest.mark.parametrize("spec", BYTES)
def test_bytes_are_multiplied_as_they_decode(spec):
    from core.quantization.kernels.triton import w8_a16

    layer = layer_of(spec, 256, 72)
    layer._layout = layout = w8_a16.arrange(layer)
    assert torch.equal(w8_a16.restore(layer), layer.planes)
    layer._layout = ()
    wanted = layer.dense_weight()
    assert relative(w8_a16.decode(*layout, torch.float32), wanted) < 1e-6
    for rows in (1, 17):
        x = torch.randn(rows, 256).half()
        assert relative(w8_a16.launch(x, *layout), x.float() @ wanted.t()) < 1e-3


@interpreted
@pytest.mark.parametrize("spec", W8)
def test_int8_products_are_the_references_own(spec):
    from core.quantization.kernels.triton import w8_a8

    layer = layer_of(spec, 256, 72)
    layer._layout = layout = w8_a8.arrange(layer)
    assert torch.equal(w8_a8.restore(layer), layer.planes)
    layer._layout = ()
    for rows in (1, 5, 70):
        x = torch.randn(rows, 256)
        x[0, 7], x[0, 9] = 40.0, -7.0
        assert torch.equal(w8_a8.launch(x, *layout, layer.quant.act == "split"), layer(x))


@interpreted
def test_values_beside_a_matrix_are_added():
    from core.quantization.kernels.triton import csr

    beside = torch.randn(53, 200).half().float() * (torch.rand(53, 200) < 0.1)
    beside[3], beside[7] = 0.0, 1.0
    kept, x, y = beside.to_sparse_csr(), torch.randn(3, 200), torch.randn(3, 53)
    wanted = y + x @ beside.t()
    csr.add(y, x, kept.crow_indices().int(), kept.col_indices().int(), kept.values())
    assert torch.allclose(y, wanted, atol=1e-5)


@interpreted
@pytest.mark.parametrize("spec", ("rtn:4", "nf4", "bitmod:4:int8-scale", "rtn:3:g24", "llm_int8", "squeezellm:dense"))
def test_decoding_is_the_definition(spec):
    from core.quantization.kernels.triton import decode

    layer = layer_of(spec, 192 if "g24" in spec else 256, 5)
    state = layer.form.named(layer.state())
    assert torch.equal(decode.decode(state, layer.quant, layer.in_features, torch.float32),
                       decode_in_steps(state, layer.form))  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("spec", (*W4, "squeezellm"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_products_and_gradients_on_a_gpu(spec, dtype):
    layer = layer_of(spec, 1280, 48)
    dense = layer.dense_weight().cuda()
    layer = layer.cuda().prepare("w4")
    for rows in (1, 3, 8, 9, 16, 33, 64, 100):
        x = torch.randn(rows, 1280, device="cuda", dtype=dtype)
        assert relative(layer(x), x.float() @ dense.t()) < 0.01
    x = torch.randn(5, 1280, device="cuda", dtype=dtype, requires_grad=True)
    layer(x).sum().backward()
    assert relative(x.grad, dense.sum(0).expand(5, -1)) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("spec", ("rtn:4", "rtn:4:g64", "trilm"))
@pytest.mark.parametrize("at_once", (1, 2))
def test_sums_made_on_the_way_are_the_same(spec, at_once):
    """Bit for bit, with one tile a block and with several, where the last is no full one."""
    for outputs in (48, 16 * 16 * 133):
        layer = layer_of(spec, 1280, outputs).cuda().prepare("w4")
        for rows in (3, 16):
            x = torch.randn(rows, 1280, device="cuda", dtype=torch.bfloat16)
            shape = w4_a16.Shape(1 if rows <= 8 else 2, 8, at_once, 3)
            before, along = (
                w4_a16.launch(x, *layer._layout, chosen=(shape._replace(along=along), False)) for along in (False, True)
            )
            assert torch.equal(before, along)


@pytest.mark.gpu
def test_long_rows_that_do_not_fit_shared_memory():
    layer = layer_of("rtn:4", 14336, 4096)
    dense = layer.dense_weight().cuda()
    layer = layer.cuda().prepare("w4")
    x = torch.randn(16, 14336, device="cuda", dtype=torch.bfloat16)
    assert relative(layer(x), x.float() @ dense.t()) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("spec", BYTES)
def test_bytes_on_a_gpu(spec):
    layer = layer_of(spec, 1280, 264)
    dense = layer.dense_weight().cuda()
    layer = layer.cuda().prepare("w8")
    for rows in (1, 17, 64, 100):
        x = torch.randn(rows, 1280, device="cuda", dtype=torch.bfloat16)
        assert relative(layer(x), x.float() @ dense.t()) < 0.01
    x = torch.randn(5, 1280, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    assert relative(x.grad, dense.sum(0).expand(5, -1)) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("spec", W8)
def test_int8_on_a_gpu(spec):
    layer = layer_of(spec, 1280, 264).cuda()
    for rows in (1, 17, 64, 100):
        x = torch.randn(rows, 1280, device="cuda", dtype=torch.bfloat16)
        x[:, 5] *= 30
        wanted = layer.prepare("reference")(x)
        assert relative(layer.prepare("w8a8")(x), wanted) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("spec,kernel", (("rtn:4", "w4"), ("nf4", "w4"), ("rtn:8", "w8"), ("llm_int8", "w8a8")))
def test_kernels_compile_into_one_graph(spec, kernel):
    layer = layer_of(spec, 1280, 48).cuda().prepare(kernel)
    x = torch.randn(2, 1280, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        assert relative(torch.compile(layer, fullgraph=True)(x), layer(x)) < 1e-3
