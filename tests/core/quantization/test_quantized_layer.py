"""One layer: codes and what they mean, its kernels against each other, adapters on it, and what it refuses."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import BackendUnavailable, ConfigError, MergeError, UnsupportedError
from core.quantization import QuantizedLinear, parse
from core.quantization.grids import decode, encode, highest_code
from core.quantization.kernels.cpu import native
from core.quantization.kernels.cuda.w4_a16 import fragments, unfragment
from core.quantization.packing import pack, unpack
from core.quantization.presets import PRESETS
from core.quantization.solvers.encoded import decoded
from core.quantization.spec import QuantSpec

SPECS = ["rtn:4", "rtn:3:g64", "rtn:sym", "rtn:8:row", "rtn:int8-scale", "nf4", "llm_int8", "bipolar:2", "bitmod:3"]
needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")


def layer_of(spec, rows=48, inputs=256, bias=False, seed=0):
    torch.manual_seed(seed)
    linear = torch.nn.Linear(inputs, rows, bias=bias)
    return linear, QuantizedLinear.from_linear(linear, parse(spec))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(5, 70), (1, 1), (3, 32), (64, 31), (2, 129), (0, 8)])
def test_planes_hold_every_code(bits, shape):
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    planes = pack(codes, bits)
    assert planes.shape == (shape[0], bits, -(-shape[1] // 32)) and torch.equal(unpack(planes, shape[1]), codes)
    for row, column in ((0, 0), (0, 5), (3, 69)):
        if row < shape[0] and column < shape[1]:
            assert (planes[row, 0, column // 32].item() >> column % 32) & 1 == int(codes[row, column]) & 1


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(5, 70), (1, 1), (33, 129), (2, 96)])
def test_a_saved_layer_takes_its_bits_and_comes_back_the_same(bits, shape, tmp_path):
    rows, inputs = shape
    _, layer = layer_of("bipolar:1:row:a16" if bits == 1 else f"rtn:{bits}:row", rows, inputs)
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    layer.planes.copy_(pack(codes, bits))
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    again = QuantizedLinear(inputs, rows, layer.quant)
    again.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(again.codes(), codes) and torch.equal(again.dense_weight(), layer.dense_weight())
    scale = 32 if bits == 1 else 24  # fp32, or fp16 and a zero point
    assert again.bits_per_weight == pytest.approx((bits * 32 * -(-inputs // 32) + scale) / inputs)


@pytest.mark.parametrize("spec", [*SPECS, "trilm"])
def test_what_is_decoded_encodes_to_the_same_codes(spec):
    spec = parse(spec)
    _, layer = layer_of(replace(spec, trained=False))
    params = decoded({n: getattr(layer, n) for n in layer.form.names[1:]}, layer.quant)
    codes = torch.randint(0, highest_code(spec) + 1, (48, 256), dtype=torch.uint8)
    again = encode(decode(codes, params, layer.quant), params, layer.quant)
    values = decode(codes, params, layer.quant)
    # a table may hold one value twice, so values are compared and not codes
    assert torch.allclose(decode(again, params, layer.quant), values, atol=1e-6)


def test_rows_of_zeros_and_constant_rows_are_exact():
    linear = torch.nn.Linear(128, 4, bias=False)
    linear.weight.data.zero_()
    linear.weight.data[1] = 0.75
    for spec in SPECS:
        dense = QuantizedLinear.from_linear(linear, parse(spec)).dense_weight()
        assert torch.equal(dense[0], torch.zeros(128)), spec
        assert torch.allclose(dense[1], torch.full((128,), 0.75), rtol=2e-2), spec


@pytest.mark.parametrize("spec", SPECS)
def test_forward_gradient_and_any_shape(spec):
    _, layer = layer_of(spec, bias=True)
    x = torch.randn(2, 3, 256, requires_grad=True)
    y = layer(x)
    wanted = x @ layer.dense_weight().t() + layer.bias
    exact = layer.quant.act == "none"
    assert (y - wanted).norm() / wanted.norm() < (1e-6 if exact else 0.02)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(gradient, layer.dense_weight().sum(0).expand_as(x), atol=1e-4)
    assert layer(torch.randn(0, 256)).shape == (0, 48) and layer(torch.randn(4, 512)[:, ::2]).shape == (4, 48)


def test_activations_in_blocks_follow_their_definition():
    from core.quantization.activations import mixed

    x = torch.randn(3, 300)
    codes, scale = mixed(x, 1)
    assert codes[:, :128].abs().max() == 127 and codes[:, 128:].abs().max() == 7 and scale.shape == (3, 3)
    back = codes.float() * scale.repeat_interleave(128, 1)[:, :300]
    assert (back - x)[:, :128].abs().max() < 0.02 < (back - x)[:, 128:].abs().max() < 0.4


def test_outlier_columns_are_kept_out():
    torch.manual_seed(0)
    linear = torch.nn.Linear(512, 64, bias=False)
    x = torch.randn(16, 512)
    x[:, [3, 90, 200, 400]] *= 50
    wanted = linear(x)
    errors = {}
    for act in ("int8", "split"):
        layer = QuantizedLinear.from_linear(linear, replace(parse("llm_int8"), act=act))
        errors[act] = float((layer(x) - wanted).norm() / wanted.norm())
    assert errors["split"] < 0.2 * errors["int8"]


@needs_compiler
@pytest.mark.parametrize("spec", ["rtn:4", "rtn:3:g32", "rtn:2:g64", "rtn:4:row", "bipolar:1:a16", "trilm:a16"])
def test_table_lookup_is_the_reference_within_the_tables_rounding(spec):
    spec = replace(parse(spec), trained=False)
    _, layer = layer_of(spec, rows=70)
    x = torch.randn(3, 256)
    wanted, state = layer(x), {k: v.clone() for k, v in layer.state_dict().items()}
    layer.prepare("lut")
    assert layer.kernel == "lut" and layer.planes.numel() == 0
    assert (layer(x) - wanted).norm() / wanted.norm() < 0.01
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())
    one = torch.zeros(1, 256)
    one[0, 17] = 127.0
    assert torch.allclose(layer(one), one @ layer.dense_weight().t(), atol=1e-3)
    assert torch.equal(layer(torch.zeros(1, 256)), torch.zeros(1, 70))
    # many rows, and a training step, take the reference
    assert torch.allclose(layer(x.expand(5, 3, 256)), wanted.expand(5, 3, 70), atol=1e-5)


LOOKED_UP = [
    "rtn:4:g128", "rtn:sym:g64", "rtn:3:g32", "rtn:3:sym:g8", "rtn:2:g256", "rtn:4:row", "rtn:4:bf16:g96",
    "bipolar:1:g128", "bipolar:3:row", "abq:2:g64", "trilm",
]  # fmt: skip


@pytest.fixture(params=["this processor", "any processor"])
def lookup(request, tmp_path, monkeypatch):
    """The compiled kernel as it is used here, and as it is on a processor without vector instructions."""
    if request.param == "any processor":
        monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
        monkeypatch.setattr(native, "FLAGS", tuple(flag for flag in native.FLAGS if not flag.startswith("-march")))
        built = native.library.__wrapped__()
        monkeypatch.setattr(native, "library", lambda: built)


@needs_compiler
def test_table_lookup_is_exact_where_its_tables_are(lookup):
    """Integers whose largest quad sums to 127 in every step are tabulated without rounding."""
    from core.quantization.kernels.cpu import lut

    for spec in LOOKED_UP:
        for rows, inputs in ((1, 768), (300, 768), (640, 256)):
            if inputs % max(8, parse(spec).group):
                continue
            _, layer = layer_of(replace(parse(spec), act="none", trained=False), rows, inputs)
            planes, step = layer.planes.clone(), lut.step_of(layer)
            x = torch.randint(-20, 21, (3, inputs // step, step)).float()
            x[..., :4] = torch.tensor([127.0, 0, 0, 0])
            x = x.flatten(1)
            wanted = x.double() @ layer.dense_weight().double().t()
            for wide in {False, lut.wide_here() and step % 32 == 0}:
                layer._layout = lut.laid_out(layer, wide)
                assert torch.equal(lut.restore(layer), planes)
                for count in (1, 3):
                    assert torch.allclose(
                        lut.multiply(layer, x[:count]).double(), wanted[:count], rtol=0, atol=1e-6 * wanted.abs().max()
                    ), spec
                assert lut.multiply(layer, x[:0]).shape == (0, rows)
                layer._layout = ()


@needs_compiler
@pytest.mark.parametrize("spec", [*SPECS, "squeezellm:3:dense", "edkm", "trilm", "bitmod:4:g32"])
@pytest.mark.parametrize("inputs", [256, 96])
def test_compiled_decoding_gives_the_values_of_the_definition(spec, inputs):
    from core.quantization.kernels import reference

    if inputs == 96 and spec in ("nf4", "rtn:3:g64"):
        inputs = 192
    _, layer = layer_of(replace(parse(spec), trained=False), inputs=inputs)
    form = layer.form
    steps = reference.decode_in_steps(form.named(layer.state()), form)
    assert torch.equal(reference.decode(layer.state(), form), steps)


def test_a_kernel_that_cannot_run_says_why():
    _, layer = layer_of("rtn:4")
    with pytest.raises(BackendUnavailable, match="it is for CUDA"):
        layer.prepare("w4")
    with pytest.raises(ConfigError, match="unknown kernel"):
        layer.prepare("fast")
    assert layer_of("nf4")[1].prepare("auto").kernel == "reference"


def test_a_layer_that_moves_to_another_kind_of_device_gives_its_planes_back():
    _, layer = layer_of("rtn:4")
    planes = layer.planes.clone()
    layer.prepare("lut").to("meta")
    assert layer.kernel == "reference" and layer.planes.shape == planes.shape and layer.planes.is_meta


def test_fragments_are_the_operand_of_the_tensor_core():
    """The instruction's own layout (m16n8k16), emulated lane by lane on the arranged words."""
    codes = torch.randint(0, 16, (32, 256), dtype=torch.uint8)
    words = fragments(codes)
    assert torch.equal(unfragment(words), codes)
    x = torch.randint(-4, 5, (8, 256)).double()
    y = torch.zeros(32, 8, dtype=torch.float64)
    for tile in range(2):
        for group in range(2):
            for k in range(8):
                a, b = torch.zeros(16, 16, dtype=torch.float64), torch.zeros(16, 8, dtype=torch.float64)
                for lane in range(32):
                    g, t = lane >> 2, lane & 3
                    word = int(words[tile, group, k // 4, lane, k % 4]) & 0xFFFFFFFF
                    for register in range(4):
                        row, column = g + 8 * (register % 2), 2 * t + 8 * (register // 2)
                        a[row, column] = (word >> (4 * register)) & 15
                        a[row, column + 1] = (word >> (4 * register + 16)) & 15
                    place = group * 128 + 32 * (k // 2) + 8 * t + 4 * (k % 2)
                    b[2 * t : 2 * t + 2, g] = x[g, place : place + 2]
                    b[2 * t + 8 : 2 * t + 10, g] = x[g, place + 2 : place + 4]
                y[tile * 16 : tile * 16 + 16] += a @ b
    assert torch.equal(y, codes.double() @ x.t())


@pytest.mark.parametrize("kernel", ["reference", pytest.param("lut", marks=needs_compiler)])
def test_a_layer_compiles_into_one_graph(kernel):
    _, layer = layer_of("rtn:4")
    layer.prepare(kernel)
    torch._dynamo.reset()
    x = torch.randn(3, 256)
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_autocast_holds_for_quantized_products_too():
    linear, layer = layer_of("rtn:8")
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(3, 256)
        assert layer(x).dtype == linear(x).dtype == torch.bfloat16


def test_dtypes_survive_casts_and_the_bias_follows():
    _, layer = layer_of("rtn:4", bias=True)
    before = layer.dense_weight()
    layer.to(torch.bfloat16)
    assert layer.scale.dtype == torch.float16 and layer.planes.dtype == torch.int32
    assert layer.bias.dtype == torch.bfloat16 and torch.equal(layer.dense_weight(), before)


def test_bits_are_counted_with_all_overheads():
    _, layer = layer_of("rtn:4", rows=64, inputs=4096)
    assert layer.bits_per_weight == 4 + (16 + 8) / 128
    _, layer = layer_of("nf4", rows=64, inputs=4096)
    assert abs(layer.bits_per_weight - 4.127) < 2e-3


def test_merging_is_rounding_again_and_comes_back_exactly():
    from peft import LoraConfig, inject_adapter_in_model

    from core.adapters.forms import know_forms

    model = torch.nn.Sequential(layer_of("bitmod:4")[1])
    base = {key: value.clone() for key, value in model.state_dict().items()}
    config = know_forms(LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False), model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        inject_adapter_in_model(config, model)
    x = torch.randn(5, 256)
    wanted, wrapped = model(x), model[0]
    with pytest.raises(MergeError, match="requantize"):
        wrapped.get_base_layer().set_dense_weight(torch.zeros(48, 256))
    wrapped.merge()
    assert 0 < wrapped.merge_error < 0.2
    assert 0 < (model(x) - wanted).norm() / wanted.norm() < 0.2
    wrapped.unmerge()
    assert torch.equal(model(x), wanted)
    assert all(torch.equal(wrapped.base_layer.state_dict()[key[2:]], value) for key, value in base.items())
    wrapped.merge(to="dense")
    assert torch.allclose(model(x), wanted, atol=1e-4) and isinstance(wrapped.base_layer, torch.nn.Linear)


def test_bad_specs_are_refused_with_a_remedy():
    with pytest.raises(ConfigError, match="unknown preset 'awk'") as error:
        parse("awk")
    assert "awq" in str(error.value)
    with pytest.raises(ConfigError, match="3 to 4 bits"):
        parse("bitmod:5")
    linear = torch.nn.Linear(96, 8)
    with pytest.raises(ConfigError, match="do not divide into groups of 64") as error:
        QuantizedLinear.from_linear(linear, parse("rtn:g64"), name="model.x")
    assert "model.x" in str(error.value) and "48" in error.value.hint
    assert QuantizedLinear.from_linear(linear, parse("rtn")).quant.group == 32
    with pytest.raises(UnsupportedError, match="quantized already"):
        QuantizedLinear.from_linear(layer_of("rtn")[1], parse("rtn"))
    with pytest.raises(UnsupportedError, match="float64"):
        QuantizedLinear.from_linear(linear.double(), parse("rtn"))


def test_specs_travel_as_json():
    for spec in PRESETS.values():
        assert QuantSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ConfigError, match="newer version|did you mean"):
        QuantSpec.from_dict({**PRESETS["rtn"].to_dict(), "colour": 1})
