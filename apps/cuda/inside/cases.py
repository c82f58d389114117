"""Test cases of a reference module: inputs by seed, shapes in its neighbourhood, and outputs in float64.

This file runs inside the sandbox, beside the reference, and knows only the standard library and torch. A reference is a
Python module as in KernelBench: `Model`, `get_inputs`, `get_init_inputs`, and module constants for its sizes. Changing
those constants makes the same operator small, or odd-sized.
"""

from __future__ import annotations

import ast
import base64
import inspect
import operator
import traceback

import torch

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WAYS = ("as they are", "signed", "negative", "as they are", "ties", "signed")
"""Values of each trial's inputs: drawn as the reference does, spread over [-1, 1), all negative, on a coarse grid."""
SMALL = 8
"""Constants up to this are taken for kernel sizes, strides and numbers of dimensions, and are left alone."""

LONG = 1531
"""A length that no block divides and that no block covers."""
TOO_LARGE = "size"
"""Where a reference fails that cannot be made as small as was asked."""

_OPERATORS = {
    ast.Mult: operator.mul, ast.Add: operator.add, ast.Sub: operator.sub, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


class ReferenceFailed(Exception):
    """The reference raises; `where` says in which of its functions, `line` on which line."""

    def __init__(self, what: str, where: str, line: int = 0) -> None:
        super().__init__(what)
        self.where, self.line = where, line


def constants(source: str) -> dict[str, int]:
    """Integers that the module assigns at its top: "N" → 4096, and "shape.0" for a tuple's first."""
    found = {name: _folded(holder[key] if isinstance(holder, list) else holder.value)
             for name, holder, key in _places(ast.parse(source))}  # fmt: skip
    return {name: number for name, number in found.items() if number is not None}


def _places(tree: ast.Module) -> list[tuple[str, ast.Assign | list[ast.expr], int]]:
    """Where the module's constants stand: (name, what holds the expression, index in it)."""
    found: list[tuple[str, ast.Assign | list[ast.expr], int]] = []
    for node in tree.body:
        if not isinstance(node, ast.Assign):
            continue
        target, value = node.targets[0], node.value
        parts = value.elts if isinstance(value, (ast.Tuple, ast.List)) else None
        if isinstance(target, ast.Name) and parts is None:
            found.append((target.id, node, 0))
        elif isinstance(target, ast.Name) and parts is not None:
            found += [(f"{target.id}.{i}", parts, i) for i in range(len(parts))]
        elif isinstance(target, ast.Tuple) and parts is not None and len(parts) == len(target.elts):
            found += [(t.id, parts, i) for i, t in enumerate(target.elts) if isinstance(t, ast.Name)]
    return found


def _folded(node: ast.expr) -> int | None:
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) is int else None
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _folded(node.left), _folded(node.right)
        if left is None or right is None or right == 0 and isinstance(node.op, ast.FloorDiv):
            return None
        return _OPERATORS[type(node.op)](left, right)
    return None


def used_by(source: str, function: str) -> set[str]:
    """Names that a function of the module reads, also through other module constants."""
    tree = ast.parse(source)
    assigned = {
        name.partition(".")[0]: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for name in (n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name))
    }
    todo = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function]
    names: set[str] = set()
    nodes: list[ast.AST] = list(todo)
    while nodes:
        for node in ast.walk(nodes.pop()):
            if isinstance(node, ast.Name) and node.id not in names:
                names.add(node.id)
                if node.id in assigned:
                    nodes.append(assigned[node.id])
    for node in tree.body:  # a = b = 3 is known by the name of a
        if isinstance(node, ast.Assign) and len(node.targets) > 1:
            alike = {t.id for t in node.targets if isinstance(t, ast.Name)}
            names |= alike if alike & names else set()
    return names


def rebuilt(source: str, sizes: dict[str, int]) -> dict:
    """The module's names after running it with other constants. Raises `ReferenceFailed`."""
    tree = ast.parse(source)
    for name, holder, index in _places(tree):
        if name in sizes:
            if isinstance(holder, list):
                holder[index] = ast.copy_location(ast.Constant(sizes[name]), holder[index])
            else:
                holder.value = ast.copy_location(ast.Constant(sizes[name]), holder.value)
    names: dict = {"__name__": "reference"}
    try:
        exec(compile(tree, "reference.py", "exec"), names)
    except Exception as error:
        raise failed(error, "the module") from error
    return names


def failed(error: BaseException, where: str) -> ReferenceFailed:
    """What a reference raised, with the line of its source."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "reference.py"]
    return ReferenceFailed(f"{type(error).__name__}: {error}"[:300], where, (lines[-1] or 0) if lines else 0)


class Made:
    """A reference made for one set of sizes and one seed: its model, named inputs and plain numbers."""

    def __init__(self, source: str, sizes: dict[str, int], seed: int, device: str = "cpu") -> None:
        names = rebuilt(source, sizes)
        where = "get_init_inputs"
        try:
            with torch.device(device):
                torch.manual_seed(seed)
                init = list(names["get_init_inputs"]())
                kwargs = {}
                if len(init) == 2 and isinstance(init[0], (list, tuple)) and isinstance(init[1], dict):
                    init, kwargs = list(init[0]), init[1]
                where = "Model"
                self.model = names["Model"](*init, **kwargs)
                torch.manual_seed(seed + 1)
                where = "get_inputs"
                given = list(names["get_inputs"]())
                if len(given) == 2 and isinstance(given[0], (list, tuple)) and isinstance(given[1], dict):
                    given = [*given[0], *given[1].values()]
        except Exception as error:
            raise failed(error, where) from error
        self.arguments, self.init = given, (init, kwargs)
        wanted = [p for p in inspect.signature(self.model.forward).parameters]
        called = [wanted[i] if i < len(wanted) else f"input_{i}" for i in range(len(given))]
        self.inputs: dict[str, torch.Tensor] = {}
        self.numbers: dict[str, int | float] = {}
        bound = [p for p in inspect.signature(type(self.model).__init__).parameters][1:]
        for name, value in [*zip(bound, init), *kwargs.items()]:
            self._number(name, value)
        for name, value in zip(called, given):
            if isinstance(value, torch.Tensor):
                self.inputs[name] = value
            else:
                self._number(name, value)
        self.weights = {n.replace(".", "_"): t for n, t in self.model.state_dict().items() if t.numel()}
        for name in sorted(set(self.weights) & set(self.inputs)):
            self.weights[f"weight_{name}"] = self.weights.pop(name)

    def _number(self, name: str, value: object) -> None:
        if isinstance(value, (bool, int, float)):
            self.numbers[name] = int(value) if isinstance(value, bool) else value
        elif isinstance(value, (tuple, list)):
            for index, part in enumerate(value):
                self._number(f"{name}_{index}", part)

    def vary(self, seed: int, how: str = "as they are") -> None:
        """Weights and inputs that are constant get noise; inputs are changed as `how`, one of `WAYS`, says."""
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in [*self.model.state_dict().values(), *self.inputs.values()]:
                if tensor.dtype in FLOATS and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                    noise = torch.rand(tensor.shape, generator=draw).to(tensor)
                    tensor.add_(0.25 + 0.5 * noise)
            for tensor in (t for t in self.inputs.values() if t.dtype in FLOATS and t.numel()):
                if how == "signed" and 0 <= float(tensor.min()) and float(tensor.max()) <= 1:
                    tensor.mul_(2).sub_(1)
                elif how == "negative":
                    tensor.abs_().neg_()
                elif how == "ties":
                    tensor.mul_(4).round_().div_(4)

    def outputs(self, precise: bool = True) -> list[torch.Tensor]:
        """What the reference gives, in float64 where `precise`; integers keep their type. Raises `ReferenceFailed`."""
        import copy

        model = copy.deepcopy(self.model)
        given = [a.clone() if isinstance(a, torch.Tensor) else a for a in self.arguments]
        if precise:
            model = model.double()
            given = [a.double() if isinstance(a, torch.Tensor) and a.dtype in FLOATS else a for a in given]
        try:
            with torch.no_grad():
                out = model(*given)
        except Exception as error:
            raise failed(error, "forward") from error
        found = list(out) if isinstance(out, (tuple, list)) else [out]
        if not found or not all(isinstance(t, torch.Tensor) for t in found):
            raise ReferenceFailed("forward must return a tensor or a flat list of tensors", "forward")
        return [t.detach().contiguous() for t in found]


def shrunk(source: str, sizes: dict[str, int], limit: int) -> dict[str, int]:
    """Constants with which inputs and weights have at most `limit` elements and the reference still runs.

    The largest constant that `get_inputs` reads is halved until the inputs fit. Where the reference then fails, those
    that the model is made of keep their value; where that is too large, up to 16 times `limit` is taken.

    Raises:
        ReferenceFailed: nothing of that helps; `where` is `TOO_LARGE` for a reference that is right at its own size.
    """
    known = {**constants(source), **sizes}
    inner = used_by(source, "get_inputs")
    outer = used_by(source, "get_init_inputs")
    everything = {n for n in known if n.partition(".")[0] in inner | outer and known[n] > SMALL}
    reads = {n for n in everything if n.partition(".")[0] in inner}
    data = {n for n in everything if n.partition(".")[0] not in outer}
    first: ReferenceFailed | None = None
    ways = [(limit, 4, reads), (limit, 4, everything), (limit, 4, data), (limit, 16, reads), (limit, 16, everything)]
    for most, least, free in [
        *ways,
        *((4 * m, n, f) for m, n, f in ways),
        (16 * limit, 4, reads),
        (16 * limit, 16, reads),
    ]:
        try:
            found = halved(source, dict(known), free, most, least)
            Made(source, found, 0).outputs(precise=False)
            return {n: v for n, v in found.items() if v != constants(source).get(n)}
        except ReferenceFailed as error:
            first = first or error
    assert first is not None
    try:
        Made(source, known, 0, device="meta").outputs(precise=False)
    except ReferenceFailed:
        raise first from None
    raise ReferenceFailed(f"smaller than published, {first.where} fails: {first}"[:300], TOO_LARGE)


def halved(source: str, known: dict[str, int], free: set[str], limit: int, least: int) -> dict[str, int]:
    """`known` with its largest constants of `free` halved, of equal ones the first by name, until all fits `limit`."""
    while True:
        made = Made(source, known, 0, device="meta")
        total = sum(t.numel() for t in [*made.inputs.values(), *made.weights.values()])
        if total <= limit and sum(t.numel() for t in made.outputs(precise=False)) <= 4 * limit:
            return known
        largest = max(sorted(free), key=lambda n: known[n], default=None)
        if largest is None or known[largest] <= least:
            raise ReferenceFailed(f"inputs and weights have {total} elements or more", TOO_LARGE)
        known[largest] = max(least, known[largest] // 2)


def neighbours(source: str, base: dict[str, int], count: int) -> list[dict[str, int]]:
    """Up to `count` other sizes for which the reference runs.

    One is odd in every dimension, some are long in one dimension and short in the others, so that loops over rows or
    columns turn more than once, and one has size 1 throughout.
    """
    known = {**constants(source), **base}
    inner, outer = used_by(source, "get_inputs"), used_by(source, "get_init_inputs")
    free = [n for n in known if n.partition(".")[0] in inner - outer and known[n] > 3]
    if not free:
        free = [n for n in known if n.partition(".")[0] in inner and known[n] > SMALL]
    tries = [{n: known[n] - 1 for n in free}]
    for longest in dict.fromkeys([*free[-1:], *free[:1]]):
        tries += [
            {n: LONG if n == longest else short(known[n]) for n in free}
            for short in (lambda v: 3, lambda v: v // 4 + 1)
        ]
    tries += [dict.fromkeys(free, 1), {n: known[n] // 2 + 1 for n in free}, {n: known[n] + 3 for n in free}]
    found: list[dict[str, int]] = []
    stretched: set[str] = set()
    for sizes in tries:
        longest = next((n for n in free if sizes[n] == LONG), "")
        if len(found) >= count or not free:
            break
        if sizes in found or longest in stretched:
            continue
        try:
            made = Made(source, {**base, **sizes}, 0, device="meta")
            if sum(t.numel() for t in made.inputs.values()) > 1 << 18:
                continue
            outs = Made(source, {**base, **sizes}, 0).outputs(precise=False)
        except ReferenceFailed:
            continue
        if all(t.numel() for t in outs):
            found.append({**base, **sizes})
            stretched |= {longest} - {""}
    return found


def packed(tensor: torch.Tensor) -> list:
    """[dtype, shape, bytes in base 64] of a tensor."""
    tensor = tensor.detach().cpu().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return [name, list(tensor.shape), base64.b64encode(plain.numpy().tobytes()).decode()]


def cases(source: str, sizes: dict, trials: int, seed: int, limit: int, nearby: bool) -> dict:
    """{"cases": [{inputs, weights, outputs, types, eager, numbers, sizes}]}, or {"error", "where", "line"}.

    `outputs` are those of float64 (or of integers), `types` the types that the module itself returns, `eager` the
    relative error of the module in its own precision.
    """
    try:
        base = shrunk(source, sizes, limit)
        others = neighbours(source, base, trials - 2) if nearby and trials > 2 else []
        found = []
        for number in range(trials):
            here = others[number - 2] if 2 <= number < 2 + len(others) else base
            found.append(one_case(source, here, seed + 7919 * number, WAYS[number % len(WAYS)]))
        return {"cases": found}
    except ReferenceFailed as error:
        return {"error": str(error), "where": error.where, "line": error.line}


def one_case(source: str, sizes: dict, seed: int, how: str) -> dict:
    """A case as plain data. Inputs are changed only where the reference stays finite on them."""
    made = Made(source, sizes, seed)
    made.vary(seed, how)
    own = made.outputs(precise=False)
    if how != WAYS[0] and not all(bool(torch.isfinite(t).all()) for t in own if t.dtype in FLOATS):
        made = Made(source, sizes, seed)
        made.vary(seed)
        own = made.outputs(precise=False)
    try:
        exact = made.outputs(precise=True)
    except ReferenceFailed:
        exact = [t.double() if t.dtype in FLOATS else t for t in own]
    eager = [float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300)) for a, b in zip(own, exact)]
    return {
        "inputs": {n: packed(t) for n, t in made.inputs.items()},
        "weights": {n: packed(t) for n, t in made.weights.items()},
        "outputs": [packed(t) for t in exact],
        "types": [str(t.dtype).removeprefix("torch.") for t in own],
        "eager": eager, "numbers": made.numbers, "sizes": sizes,
    }  # fmt: skip
