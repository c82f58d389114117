"""The launch plan of a candidate: which kernels run in what order, on which grids, with which arguments.

    {"sizes": {"n": "size(x)"},
     "scratch": {"partial": {"dtype": "float32", "size": "(n + 255) // 256"}},
     "zero": ["out"],
     "launches": [{"kernel": "add", "grid": ["(n + 255) // 256"], "block": [256], "shared": 0,
                   "args": ["x", "y", "out", "n"]}]}

Sizes are integer arithmetic over the shapes: `x[0]` is the first dimension of x, `size(x)` its number of elements,
`dims(x)` its number of dimensions, and `+ - * // % max min` combine them. There is no other code of the candidate
outside its kernels, so nothing generated ever runs on the host.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apps.cuda.source import Kernel

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
         "uint8": 1, "bool": 1}  # fmt: skip
C_TYPES = {
    "float64": ("double",), "float32": ("float",), "float16": ("half", "__half"),
    "bfloat16": ("__nv_bfloat16", "nv_bfloat16"), "int64": ("long long", "int64_t", "long", "long long int"),
    "int32": ("int", "int32_t", "unsigned", "unsigned int", "uint32_t"), "int16": ("short", "int16_t"),
    "int8": ("char", "signed char", "int8_t"), "uint8": ("unsigned char", "uint8_t"),
    "bool": ("bool", "unsigned char", "uint8_t", "char", "int8_t"),
}  # fmt: skip
_VECTORS = {
    "float32": ("float2", "float3", "float4"), "float64": ("double2",), "float16": ("half2", "__half2"),
    "bfloat16": ("__nv_bfloat162", "nv_bfloat162"), "int32": ("int2", "int3", "int4", "uint2", "uint4"),
    "uint8": ("uchar4",), "int8": ("char4",),
}  # fmt: skip
_INTEGERS = {"int": 4, "int32_t": 4, "unsigned": 4, "unsigned int": 4, "uint32_t": 4, "long long": 8, "int64_t": 8,
             "long": 8, "long long int": 8, "size_t": 8, "unsigned long long": 8, "uint64_t": 8, "bool": 1,
             "short": 2, "char": 1, "unsigned char": 1}  # fmt: skip
_GRID = (2**31 - 1, 65535, 65535)
_BLOCK = (1024, 1024, 64)
_LARGEST = 2**40


class PlanError(Exception):
    """A plan that cannot be carried out; the message is for the model that wrote it."""


@dataclass(frozen=True)
class Spec:
    """A tensor by its dtype, such as "float32", and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        total = 1
        for dim in self.shape:
            total *= dim
        return total

    @property
    def bytes(self) -> int:
        return self.size * BYTES[self.dtype]


@dataclass(frozen=True)
class Signature:
    """What kernels may be given: inputs and weights by name, outputs by name, and plain numbers."""

    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]
    numbers: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Spec]:
        return {**self.inputs, **self.outputs}


@dataclass(frozen=True)
class Launch:
    """A launch with its numbers: `args` are ("tensor", name), or ("int4" | "int8" | "int2" | "int1", n), ("float", x),
    ("double", x)."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    args: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Resolved:
    """A plan for one set of shapes."""

    launches: tuple[Launch, ...]
    scratch: Mapping[str, Spec]
    zero: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A plan as it was written, checked for its form."""

    launches: tuple[Mapping[str, Any], ...]
    sizes: Mapping[str, str] = field(default_factory=dict)
    scratch: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    zero: tuple[str, ...] = ()


def parse_plan(text: str) -> Plan:
    """Raises `PlanError` for what is no plan, saying which field."""
    if not text.strip():
        raise PlanError("there is no launch plan: open the code with a comment /* launch {...} */")
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError(f"the launch plan is not JSON: line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise PlanError("the launch plan is nested too deeply") from error
    if not isinstance(row, dict):
        raise PlanError("the launch plan is not an object")
    unknown = set(row) - {"sizes", "scratch", "zero", "launches"}
    if unknown:
        raise PlanError(f"unknown field '{sorted(unknown)[0]}'; known: sizes, scratch, zero, launches")
    launches = row.get("launches")
    if not isinstance(launches, list) or not launches or len(launches) > 64:
        raise PlanError("launches must be a list of 1 to 64 launches")
    for number, launch in enumerate(launches):
        if not isinstance(launch, dict) or not isinstance(launch.get("kernel"), str):
            raise PlanError(f"launch {number} has no kernel name")
        extra = set(launch) - {"kernel", "grid", "block", "shared", "args"}
        if extra:
            raise PlanError(f"launch {number} has an unknown field '{sorted(extra)[0]}'")
        for name in ("grid", "block"):
            value = launch.get(name)
            if not isinstance(value, list) or not 1 <= len(value) <= 3:
                raise PlanError(f"{name} of launch {number} must be a list of 1 to 3 sizes")
        if not isinstance(launch.get("args"), list):
            raise PlanError(f"args of launch {number} must be a list")
    sizes, scratch, zero = row.get("sizes", {}), row.get("scratch", {}), row.get("zero", [])
    if not isinstance(sizes, dict) or not isinstance(scratch, dict) or not isinstance(zero, list):
        raise PlanError("sizes and scratch are objects, zero is a list")
    for name, value in scratch.items():
        if not isinstance(value, dict) or value.get("dtype") not in BYTES or "size" not in value:
            raise PlanError(f"scratch '{name}' needs dtype (one of {', '.join(BYTES)}) and size")
    return Plan(tuple(launches), sizes, scratch, tuple(map(str, zero)))


def resolve(plan: Plan, kernels: Mapping[str, Kernel], signature: Signature) -> Resolved:
    """The plan with numbers for the shapes of `signature`.

    Raises:
        PlanError: an unknown kernel, argument or size, a type that does not fit, a grid over the limits.
    """
    names: dict[str, Any] = {k: v for k, v in signature.numbers.items()}
    tensors = signature.tensors
    for name, text in plan.sizes.items():
        if not name.isidentifier() or name in tensors:
            raise PlanError(f"'{name}' cannot be the name of a size")
        names[name] = evaluate(text, names, tensors)
    scratch: dict[str, Spec] = {}
    for name, row in plan.scratch.items():
        if name in tensors or name in names:
            raise PlanError(f"scratch '{name}' has the name of something else")
        size = evaluate(row["size"], names, tensors)
        if not 0 < size * BYTES[row["dtype"]] <= 2**34:
            raise PlanError(f"scratch '{name}' has {size} elements")
        scratch[name] = Spec(row["dtype"], (size,))
    there = {**tensors, **scratch}
    for name in plan.zero:
        if name not in scratch and name not in signature.outputs:
            raise PlanError(f"zero names '{name}', which is neither an output nor scratch")
    launches = [_launch(i, row, kernels, names, there) for i, row in enumerate(plan.launches)]
    return Resolved(tuple(launches), scratch, plan.zero)


def _launch(
    number: int, row: Mapping[str, Any], kernels: Mapping[str, Kernel], names: Mapping[str, Any],
    tensors: Mapping[str, Spec],
) -> Launch:  # fmt: skip
    kernel = kernels.get(row["kernel"])
    if kernel is None:
        raise PlanError(
            f"launch {number} names the kernel '{row['kernel']}'; the code has: {', '.join(kernels) or 'none'}"
        )
    if kernel.template:
        raise PlanError(f"'{kernel.name}' is a template: a kernel that is launched by name must be a plain function")
    dims: dict[str, tuple[int, int, int]] = {}
    for what, most in (("grid", _GRID), ("block", _BLOCK)):
        found = [evaluate(text, names, tensors) for text in row[what]] + [1, 1]
        for axis, (value, limit) in enumerate(zip(found[:3], most)):
            if not 1 <= value <= limit:
                raise PlanError(f"{what} of launch {number} is {value} along {'xyz'[axis]}; it must be 1 to {limit}")
        dims[what] = (found[0], found[1], found[2])
    threads = dims["block"][0] * dims["block"][1] * dims["block"][2]
    if threads > 1024:
        raise PlanError(f"a block of launch {number} has {threads} threads; the limit is 1024")
    shared = evaluate(row.get("shared", 0), names, tensors)
    if not 0 <= shared <= 232448:
        raise PlanError(f"launch {number} asks for {shared} bytes of shared memory; the limit is 232448")
    if len(row["args"]) != len(kernel.params):
        raise PlanError(
            f"'{kernel.name}' has {len(kernel.params)} parameters, launch {number} gives {len(row['args'])}"
        )
    args = [_argument(number, kernel, i, given, names, tensors) for i, given in enumerate(row["args"])]
    return Launch(kernel.name, dims["grid"], dims["block"], shared, tuple(args))


def _argument(
    number: int, kernel: Kernel, index: int, given: Any, names: Mapping[str, Any], tensors: Mapping[str, Spec]
) -> tuple[str, Any]:
    param = kernel.params[index]
    where = f"argument {index} of '{kernel.name}' (launch {number})"
    if param.pointer:
        if not isinstance(given, str) or given not in tensors:
            raise PlanError(f"{where} is {given!r}; a pointer takes one of: {', '.join(tensors)}")
        dtype = tensors[given].dtype
        if param.type not in (*C_TYPES[dtype], *_VECTORS.get(dtype, ()), "void"):
            raise PlanError(f"{where} is `{param.text}`, but {given} holds {dtype}")
        return "tensor", given
    if isinstance(given, str) and given in tensors:
        raise PlanError(f"{where} is `{param.text}`, no pointer, but {given} is a tensor")
    if param.type in ("float", "double"):
        value = names.get(given, given) if isinstance(given, str) else given
        if isinstance(value, str):
            value = evaluate(value, names, tensors)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise PlanError(f"{where} is {given!r}, expected a number")
        return param.type, float(value)
    if param.type not in _INTEGERS:
        raise PlanError(f"{where} has the type `{param.text}`; plans give pointers, integers and floating numbers")
    value = evaluate(given, names, tensors)
    size = _INTEGERS[param.type]
    if size < 8 and not -(2 ** (8 * size - 1)) <= value < 2 ** (8 * size):
        raise PlanError(f"{where} is {value}, too large for `{param.text}`")
    return f"int{size}", value


def evaluate(text: Any, names: Mapping[str, Any], tensors: Mapping[str, Spec]) -> int:
    """An integer from an expression over sizes. Raises `PlanError` for anything else."""
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise PlanError(f"{text!r} is not a size")
    if isinstance(text, int):
        return text
    if len(text) > 400:
        raise PlanError("a size is longer than 400 characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PlanError(f"{text!r} is not arithmetic") from error
    try:
        return _value(tree.body, names, tensors)
    except ZeroDivisionError as error:
        raise PlanError(f"{text!r} divides by zero") from error


def _value(node: ast.expr, names: Mapping[str, Any], tensors: Mapping[str, Spec]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return _small(node.value)
    if isinstance(node, ast.Name):
        value = names.get(node.id)
        if type(value) is not int:
            known = ", ".join([*(k for k, v in names.items() if type(v) is int), *tensors])
            raise PlanError(f"'{node.id}' is not a size; known: {known}")
        return _small(value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, names, tensors)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _small(_OPERATORS[type(node.op)](_value(node.left, names, tensors), _value(node.right, names, tensors)))
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        shape = _tensor(node.value.id, tensors).shape
        axis = _value(node.slice, names, tensors)
        if not -len(shape) <= axis < len(shape):
            raise PlanError(f"{node.value.id} has {len(shape)} dimensions, and dimension {axis} was asked for")
        return shape[axis]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id in ("max", "min") and node.args:
            return (max if node.func.id == "max" else min)(_value(a, names, tensors) for a in node.args)
        if node.func.id in ("size", "dims") and len(node.args) == 1 and isinstance(node.args[0], ast.Name):
            spec = _tensor(node.args[0].id, tensors)
            return spec.size if node.func.id == "size" else len(spec.shape)
    raise PlanError(f"`{ast.unparse(node)[:60]}` is not allowed in a size: integers, + - * // % max min, x[0], size(x)")


_OPERATORS = {
    ast.Add: lambda a, b: a + b, ast.Sub: lambda a, b: a - b, ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b, ast.Mod: lambda a, b: a % b,
}  # fmt: skip


def _tensor(name: str, tensors: Mapping[str, Spec]) -> Spec:
    if name not in tensors:
        raise PlanError(f"there is no tensor '{name}'; known: {', '.join(tensors)}")
    return tensors[name]


def _small(value: int) -> int:
    if abs(value) > _LARGEST:
        raise PlanError("a size is beyond 2**40")
    return value


def output_names(count: int) -> Sequence[str]:
    """The names of outputs: out of the only one, out_0, out_1, … of several."""
    return ["out"] if count == 1 else [f"out_{i}" for i in range(count)]
