"""Equality: with bitsandbytes (NF4, LLM.int8()), transformers' BitNet, brute force, int64, and a saved model itself."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.bar import Bar, Measured, Setting

Check = tuple[float, float]


def measure(setting: Setting) -> Measured:
    import torch

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    checks: dict[str, Callable[[Any], Check]] = {
        "NF4 codes unlike bitsandbytes'": nf4_codes,
        "NF4 weights: entries with another second-level scale code": nf4_weights,
        "LLM.int8() weight codes unlike bitsandbytes'": int8_weights,
        "LLM.int8() activation codes unlike bitsandbytes'": int8_activations,
        "ternary and int8 forward against transformers' BitNet, relative": bitnet,
        "k-means cost above brute force, relative": kmeans,
        "integer product against int64, entries": integers,
        "QoQ weight outside int8, over all ranges": protected_range,
        "saved and loaded, tensors that differ": reload,
        "gradient of the input against a dense layer, relative": gradient,
    }
    found: dict[str, Any] = {}
    for name, check in checks.items():
        try:
            value, limit = check(setting)
            found[name] = {"value": value, "limit": limit, "pass": value <= limit}
        except ImportError as error:
            found[name] = {"unavailable": str(error)}
    failed = [name for name, result in found.items() if result.get("pass") is False]
    return Measured(len(failed), not failed, chance="none: equality", details={"checks": found, "failed": failed})


def _weight(rows: int = 256, inputs: int = 512) -> Any:
    import torch

    return torch.randn(rows, inputs) * 0.02


def _layer(weight: Any, spec: Any) -> Any:
    import torch

    from core.quantization import QuantizedLinear, parse

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    return QuantizedLinear.from_linear(linear, parse(spec))


def _nf4(weight: Any) -> tuple[Any, Any]:
    import bitsandbytes.functional as peer

    return peer.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")


def nf4_codes(setting: Setting) -> Check:
    import torch

    weight = _weight()
    packed, _ = _nf4(weight)
    flat = packed.flatten()
    codes = torch.stack([flat >> 4, flat & 15], 1).view_as(weight)
    return float((codes != _layer(weight, "nf4").codes()).sum()), 0.0


def nf4_weights(setting: Setting) -> Check:
    """bitsandbytes' CPU search rounds a scale within 1e-5 of a midpoint either way; ours takes the nearest."""
    weight = _weight()
    _, state = _nf4(weight)
    return float((state.absmax.int() != _layer(weight, "nf4").scale.flatten().int()).float().mean()), 0.005


def int8_weights(setting: Setting) -> Check:
    import bitsandbytes.functional as peer

    weight = _weight().half()
    codes, _, _ = peer.int8_vectorwise_quant(weight)
    return float((codes.int() != _layer(weight, "llm_int8").codes().int() - 128).sum()), 0.0


def int8_activations(setting: Setting) -> Check:
    import bitsandbytes.functional as peer
    import torch

    from core.quantization.activations import split

    x = torch.randn(33, 512).half()
    x[:, 7] *= 20
    theirs, scale, columns = peer.int8_vectorwise_quant(x.clone(), threshold=6.0)
    codes, ours, mask = split(x)
    wrong = int((theirs != codes).sum()) + int(mask.nonzero()[:, 0].tolist() != columns.tolist())
    return float(wrong) + float((scale / 127 - ours[:, 0]).abs().max() > 1e-7), 0.0


def bitnet(setting: Setting) -> Check:
    import torch
    from transformers.integrations.bitnet import ActQuant, WeightQuant

    from core.quantization import parse
    from core.quantization.solvers.ste import TernaryLinear, normalised

    layer = TernaryLinear(256, 96, quant=parse("bitlinear"))
    x = torch.randn(9, 256)
    # the functions themselves, without the compiler that decorates them
    forward = [getattr(f.forward, "_torchdynamo_orig_callable", f.forward) for f in (ActQuant, WeightQuant)]
    wanted = torch.nn.functional.linear(forward[0](None, normalised(x)), forward[1](None, layer.weight.data))
    return float((layer(x) - wanted).norm() / wanted.norm()), 1e-5


def kmeans(setting: Setting) -> Check:
    import torch

    from core.quantization.solvers.kmeans import _cluster, cluster

    values, weights = torch.randn(6, 12), torch.rand(6, 12) ** 3
    weights[0, :4] = 0
    worst = 0.0
    for k in range(1, 5):
        for solve in (cluster, _cluster):
            for v, w, levels in zip(values, weights, solve(values, weights, k)):
                cost = float((w.double() * (v.double()[:, None] - levels.double()).square().amin(1)).sum())
                best = _brute(v.double(), w.double(), k)
                worst = max(worst, (cost - best) / max(best, 1e-12))
    return worst, 1e-6


def _brute(values: Any, weights: Any, k: int) -> float:
    values, order = values.sort()
    weights, best = weights[order], float("inf")
    for cuts in itertools.combinations_with_replacement(range(len(values) + 1), k - 1):
        ends, cost = [0, *cuts, len(values)], 0.0
        for a, b in itertools.pairwise(ends):
            mass = float(weights[a:b].sum())
            if mass > 0:
                mean = float((weights[a:b] * values[a:b]).sum()) / mass
                cost += float((weights[a:b] * (values[a:b] - mean) ** 2).sum())
        best = min(best, cost)
    return best


def integers(setting: Setting) -> Check:
    import torch

    from core.quantization import activations
    from core.quantization.kernels.reference import integer_weight

    wrong = 0
    for spec in ("llm_int8", "qoq", "rtn:8:row:a8", "bipolar:8", "bipolar:3", "rtn:3:g32:a8"):
        base = replace(_parse(spec), objective="weights", solver=_parse("rtn").solver)
        layer = _layer(_weight(64, 256) * 40, base)
        weight, _ = integer_weight(layer.form.named(layer.state()), layer.form)
        for codes in (activations.per_token(torch.randn(5, 256))[0], activations.bipolar(torch.randn(5, 256))[0]):
            exact = (codes.long()[:, None] * weight.long()[None]).sum(-1)
            wrong += int((activations.integer_matmul(codes, weight).long() != exact).sum())
    return float(wrong), 0.0


def _parse(spec: Any) -> Any:
    from core.quantization import parse

    return parse(spec)


def protected_range(setting: Setting) -> Check:
    """(q − z)·s stays within int8 for every group range inside ±119, and not for ±121."""

    def outside(bound: int) -> int:
        count = 0
        for low in range(-bound, 1):
            for high in range(0, bound + 1):
                step = max(1, round((high - low) / 15))
                zero = min(15, max(0, round(-low / step)))
                ends = [(min(15, max(0, round(w / step) + zero)) - zero) * step for w in (low, high)]
                count += not all(-128 <= end <= 127 for end in ends)
        return count

    return float(outside(119)) + (0.0 if outside(124) else 1.0), 0.0


def reload(setting: Setting) -> Check:
    import copy
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from core.models.rope import keep_exact
    from core.quantization import quantize_model
    from core.quantization.presets import PRESETS
    from core.quantization.trained import make_trainable, pack

    size = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = keep_exact(LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, **size)).eval())
    calib = [torch.randint(0, 256, (4, 32))]
    ids, wrong = torch.randint(0, 256, (2, 12)), 0
    for name, spec in PRESETS.items():
        for dtype in (torch.float32, torch.bfloat16):
            model = copy.deepcopy(base).to(dtype)
            if spec.trained:
                pack(make_trainable(model, spec))
            else:
                options = {"epochs": 1} if name == "abq" else {}
                quantize_model(model, spec, calib if spec.needs_calibration else None, **options)
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                model.save_pretrained(folder)
                again = AutoModelForCausalLM.from_pretrained(folder)
                wrong += int(not torch.equal(model(ids).logits, again(ids).logits))
                pairs = zip(model.state_dict().values(), again.state_dict().values())
                wrong += sum(not (torch.equal(a, b) and a.dtype == b.dtype) for a, b in pairs)
    return float(wrong), 0.0


def gradient(setting: Setting) -> Check:
    import torch

    worst = 0.0
    for spec in ("rtn:4", "nf4", "bitmod:3", "rtn:3:g64", "llm_int8"):
        layer = _layer(_weight(96, 256), spec)
        x = torch.randn(7, 256, requires_grad=True)
        g = torch.randn(7, 96)
        (ours,) = torch.autograd.grad(layer(x), x, g)
        wanted = g @ layer.dense_weight()
        worst = max(worst, float((ours - wanted).norm() / wanted.norm()))
    return worst, 1e-6


BAR = Bar(
    "quantization.exact",
    "Equality with bitsandbytes, BitNet, brute force, int64 and with itself after saving",
    "checks that fail",
    "0",
    "cpu",
    1,
    measure,
)
