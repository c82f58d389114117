"""Every method as one row: its choice on each axis.

This table is the module's table of contents. A row says which values a code can mean, what shares a scale, which
rewrite precedes rounding, how codes are found, what is kept outside, and how activations and the key-value cache are
held. The methods' own mathematics stands in `transforms` and `solvers`.

Methods: NF4 (Dettmers et al. 2023), LLM.int8() (Dettmers et al. 2022), AWQ (Lin et al. 2023), SmoothQuant+ (Pan et al.
2023), SqueezeLLM (Kim et al. 2023), GPTQ (Frantar et al. 2022), QoQ (Lin et al. 2024, QServe), FMPQ (Liu et al. 2024,
COMET), ABQ-LLM (Zeng et al. 2024), bipolar integers (Ma et al. 2024), BitMoD (Chen et al. 2024), eDKM (Cho et al.
2023), TriLM (Kaushal et al. 2024, Spectra), BitLinear (Wang et al. 2023; Zhu et al. 2024).
"""

from __future__ import annotations

from core.quantization.spec import ROW, TENSOR, QuantSpec

_S = "core.quantization.solvers"
_RTN, _GPTQ, _KMEANS = f"{_S}.rtn:solve", f"{_S}.gptq:solve", f"{_S}.kmeans:solve"
_TYPES, _BLOCK, _STE, _DKM = f"{_S}.typesearch:solve", f"{_S}.block:solve", f"{_S}.ste:solve", f"{_S}.dkm:solve"
_AWQ = ("scale_search", "clip_search")
_QOQ = ("rotate", "smooth_attention", "smooth_rest")

# fmt: off
_ROWS = (
    #         preset              grid        bits  symmetric        group         scale
    QuantSpec("rtn",              "int",      4, solver=_RTN),
    QuantSpec("nf4",              "nf4",      4, symmetric=True,     group=64,     scale="double", solver=_RTN),
    QuantSpec("llm_int8",         "int",      8, symmetric=True,     group=ROW,    scale="fp32",   solver=_RTN,
              act="split"),
    QuantSpec("awq",              "int",      4, transforms=_AWQ,    solver=_RTN,  objective="module output"),
    QuantSpec("smoothquant_plus", "int",      4, transforms=("global_alpha",), solver=_RTN, objective="model output"),
    QuantSpec("squeezellm",       "learned",  4, group=ROW,          solver=_KMEANS, objective="fisher",
              outliers=0.0045, sensitive=0.0005),
    QuantSpec("gptq",             "int",      4, solver=_GPTQ,       objective="hessian"),
    QuantSpec("qoq",              "int",      4, scale="int8",       transforms=_QOQ, solver=_GPTQ, objective="hessian",
              act="int8", kv=4),
    QuantSpec("comet",            "int",      4, symmetric=True,     transforms=("permute",), solver=_RTN,
              objective="absmax", act="mixed4", kv=4),
    QuantSpec("abq",              "int",      4, group=ROW,          scale="fp32", transforms=("learned",),
              solver=_BLOCK,      objective="block output", act="int8"),
    QuantSpec("bipolar",          "bipolar",  4, symmetric=True,     group=ROW,    scale="fp32", solver=_RTN,
              act="bipolar8"),
    QuantSpec("bitmod",           "bitmod",   4, symmetric=True,     solver=_TYPES),
    QuantSpec("edkm",             "learned",  3, group=TENSOR,       solver=_DKM,  objective="training", trained=True),
    QuantSpec("trilm",            "ternary",  2, symmetric=True,     group=TENSOR, scale="fp32", solver=_STE,
              objective="training", trained=True),
    QuantSpec("bitlinear",        "ternary",  2, symmetric=True,     group=TENSOR, scale="fp32", solver=_STE,
              objective="training", act="int8", trained=True),
)
# fmt: on

PRESETS: dict[str, QuantSpec] = {row.preset: row for row in _ROWS}
DATA_FREE = tuple(name for name, row in PRESETS.items() if not row.needs_calibration and not row.trained)
