"""NF4 and LLM.int8() through bitsandbytes, on CPU and GPU.

NormalFloat4 with doubly quantized scales is the base of QLoRA (Dettmers et al. 2023): 4.127 bits a weight, multiplied
in the compute format. LLM.int8() (Dettmers et al. 2022) keeps columns with outliers in 16 bits. Embedding and head
stay as they are. This module knows transformers' loading and nothing of training.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from core.errors import BackendUnavailable


def loading(spec: str, compute_dtype: Any, dense: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize each weight as it is read.

    Args:
        spec: "nf4" or "int8". compute_dtype: of the matrix products. dense: names of maps that stay as they are.
    """
    from transformers import BitsAndBytesConfig

    require()
    skipped = [*dense, "lm_head"] if dense else None
    if spec == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
            bnb_4bit_quant_storage="uint8",
            llm_int8_skip_modules=skipped,
        )
    return {"quantization_config": config}


def require() -> None:
    """Raise `BackendUnavailable` when bitsandbytes cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes  # noqa: F401
    except Exception as error:
        raise BackendUnavailable(
            f"bitsandbytes cannot be used: {error}",
            where="model.quantization",
            hint="pip install 'graft[quant]', or set model.quantization: none",
        ) from error


def dense_weight(module: Any, dtype: Any = None) -> Any:
    """The weight (out, in) that a quantized layer multiplies with."""
    import bitsandbytes
    import torch

    weight = module.weight
    if isinstance(module, bitsandbytes.nn.Linear8bitLt):
        ready = weight.data.dtype == torch.int8 and getattr(weight, "SCB", None) is not None
        codes, scales = (weight.data, weight.SCB) if ready else (module.state.CB, module.state.SCB)
        dense = codes.float() * scales.float().to(codes.device)[:, None] / 127
    else:
        codes, state = weight.data, weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            # the first inference on a CPU has arranged the codes for its kernel, the scales rounded to bf16
            codes, state = bitsandbytes.functional._convert_weight_packed_for_cpu_inverse(codes, state)
        dense = bitsandbytes.functional.dequantize_4bit(codes, state)
    return dense if dtype is None else dense.to(dtype)


def dense_state(model: Any) -> dict[str, Any]:
    """The state of `model` with dense weights in place of the packed ones and what belongs to them."""
    layers = {name: module for name, module in model.named_modules() if is_quantized_linear(module)}
    packed = tuple(f"{name}.weight" for name in layers) + tuple(f"{name}.SCB" for name in layers)
    extra = tuple(f"{name}.weight_format" for name in layers)
    state = {
        name: value for name, value in model.state_dict().items() if not name.startswith(packed) and name not in extra
    }
    dtype = model.dtype if model.dtype.is_floating_point else None
    return {**state, **{f"{name}.weight": dense_weight(module, dtype) for name, module in layers.items()}}


def keep_codes(model: Any) -> Any:
    """`model`, whose 4-bit layers never arrange their codes anew.

    On CPUs with the instructions for it the first inference would, and round the scales to bf16 with it: a run that
    was scored first would then train on other weights than one that is resumed.
    """
    for module in model.modules():
        if is_quantized_linear(module) and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def is_quantized_linear(module: Any) -> bool:
    """Whether the module is one of bitsandbytes' layers, without importing it; peft's wrappers have the same names."""
    kind = type(module)
    return kind.__module__.startswith("bitsandbytes") and kind.__name__ in ("Linear4bit", "Linear8bitLt")


def apply(model: Any, spec: str, device: str, context: Any = None) -> Any:
    """A new model of the same class whose linear maps, but for the head, hold the weights of `model` in `spec`."""
    from core.models.rope import keep_exact
    from core.quantization.load import compute_dtype

    dense = () if context is None else context.dense
    options = {**loading(spec, compute_dtype(device), dense), "device_map": {"": device}}
    made = type(model).from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), dtype=next(model.parameters()).dtype, **options
    )
    made.name_or_path = made.config._name_or_path = model.name_or_path
    return keep_exact(made)
