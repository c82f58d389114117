"""What a KernelBench answer may contain: a Python module with `ModelNew`, judged on its syntax tree.

Python can reach everything in its process, so this is an allow list: modules, a class that stands on its own, no state
that a call leaves behind, no way to the timer, to other streams or threads, no fallback to what it should replace. What
passes here still runs in a process of its own, away from the expected output.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from apps.cuda.verdict import Diagnostic

MODULES = frozenset(
    "torch torch.nn torch.nn.functional torch.utils.cpp_extension triton triton.language math typing dataclasses "
    "__future__ enum".split()
)
_CALLS = frozenset(
    "eval exec compile open __import__ globals locals vars setattr delattr input breakpoint memoryview".split()
)
_WORDS = {
    "Stream": "another stream hides work from the timer", "stream": "another stream hides work from the timer",
    "current_stream": "", "ExternalStream": "another stream hides work from the timer",
    "CUDAGraph": "a graph replays old work", "graph": "a graph replays old work",
    "make_graphed_callables": "a graph replays old work", "Event": "events belong to the timer",
    "synchronize": "synchronising belongs to the timer", "empty_cache": "the allocator belongs to the harness",
    "memory": "the allocator belongs to the harness", "register_hook": "hooks change other modules",
    "register_forward_hook": "hooks change other modules", "__torch_function__": "tensors must be plain tensors",
    "__torch_dispatch__": "tensors must be plain tensors", "as_subclass": "tensors must be plain tensors",
    "_make_subclass": "tensors must be plain tensors", "library": "operators may not be replaced",
    "set_default_dtype": "settings of the process may not be changed",
    "set_default_device": "settings of the process may not be changed",
    "lru_cache": "results may not be kept", "data_ptr_cache": "results may not be kept",
    "lazy": "work must be done when forward returns", "compile": "the compiled reference is a baseline, not an answer",
}  # fmt: skip
_LOW = frozenset("half bfloat16 float16 autocast set_float32_matmul_precision allow_tf32 fp16 bf16 tf32".split())
_OPS = frozenset(
    (
        "matmul mm bmm addmm baddbmm einsum softmax log_softmax relu gelu silu sigmoid tanh layer_norm batch_norm "
        "group_norm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear max_pool1d "
        "max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d scaled_dot_product_attention cumsum cumprod sum "
        "mean max min prod std var norm exp log sqrt add mul sub div bilinear embedding cross_entropy mse_loss "
        "dropout sort topk argmax argmin cdist lstm gru "
    ).split()
)
_HOST = re.compile(
    r"\b(std::thread|pthread_\w+|fork|system|popen|dlopen|dlsym|cudaStreamCreate\w*|cudaGraph\w*|cudaStreamNonBlocking|"
    r"getStreamFromPool|std::async|cublas\w*|cudnn\w*|at::(?:matmul|mm|softmax|conv\w*|relu)|torch::(?:matmul|mm|softmax|"
    r"conv\w*|relu))\b"
)


def violations(code: str, *, torch_ops: bool = False) -> list[Diagnostic]:
    """Everything in the module that is not allowed, in order of its lines.

    Args:
        torch_ops: allow high-level operators of torch in forward.
    """
    if any(not c.isprintable() and c not in "\n\t\r" for c in code):
        return [Diagnostic(0, "the code holds control characters")]
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        return [Diagnostic(getattr(error, "lineno", 0) or 0, f"no Python: {getattr(error, 'msg', error)}")]
    found = [*_structure(tree), *_nodes(tree), *_strings(tree)]
    if not torch_ops:
        found += _high_level(tree)
    return sorted(set(found), key=lambda d: d.line)


def flags(code: str) -> tuple[str, ...]:
    """Remarks: lower precision than the tensors may have."""
    names = {n.attr if isinstance(n, ast.Attribute) else n.id for n in ast.walk(ast.parse(code))
             if isinstance(n, (ast.Attribute, ast.Name))}  # fmt: skip
    text = " ".join(_constants(ast.parse(code)))
    low = names & _LOW or re.search(r"\b(__half|half2|__nv_bfloat16|tf32|wmma)\b", text)
    return ("precision_downgrade",) if low else ()


def _structure(tree: ast.Module) -> Iterator[Diagnostic]:
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    if "ModelNew" not in classes:
        yield Diagnostic(0, "the module does not define the class ModelNew")
    for name, node in classes.items():
        bases = [ast.unparse(b) for b in node.bases]
        allowed = ("nn.Module", "torch.nn.Module") if name == "ModelNew" else ("nn.Module", "torch.nn.Module", "object")
        for base in bases or (["nothing"] if name == "ModelNew" else []):
            if base not in allowed:
                yield Diagnostic(node.lineno, f"{name} inherits from {base}; only nn.Module is allowed")
    kernels = any(isinstance(n, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in n.decorator_list)
                  for n in ast.walk(tree))  # fmt: skip
    names = (n for n in ast.walk(tree) if isinstance(n, (ast.Name, ast.Attribute)))
    inline = any((n.id if isinstance(n, ast.Name) else n.attr) == "load_inline" for n in names)
    if not kernels and not inline:
        yield Diagnostic(0, "there is no kernel: neither load_inline nor a function with triton.jit")
    for statement in tree.body:
        harmless = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Assign, ast.AnnAssign)
        words = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not isinstance(statement, harmless) and not words:
            yield Diagnostic(statement.lineno, "statements outside functions and classes may only import and assign")


def _nodes(tree: ast.Module) -> Iterator[Diagnostic]:
    modules: set[str] = set()
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules.add((alias.asname or alias.name).partition(".")[0])
                if alias.name not in MODULES:
                    yield Diagnostic(line, f"import {alias.name} is not allowed")
        elif isinstance(node, ast.ImportFrom):
            if node.module not in MODULES or node.level:
                yield Diagnostic(line, f"import from {node.module} is not allowed")
            for alias in node.names:
                modules.add(alias.asname or alias.name)
                if alias.name in _WORDS and _WORDS[alias.name]:
                    yield Diagnostic(line, f"'{alias.name}' is not allowed: {_WORDS[alias.name]}")
        elif isinstance(node, (ast.Try, ast.TryStar)):
            yield Diagnostic(line, "a fallback (try) hides a kernel that fails")
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            yield Diagnostic(line, "global state keeps results between calls")
        elif isinstance(node, (ast.AsyncFunctionDef, ast.Await)):
            yield Diagnostic(line, "work must be done when forward returns")
        elif isinstance(node, ast.Name):
            if node.id in _CALLS or node.id in ("__builtins__", "Model"):
                yield Diagnostic(line, f"'{node.id}' is not allowed")
        elif isinstance(node, ast.Attribute):
            yield from _attribute(node, modules)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            if not (len(node.args) > 1 and isinstance(node.args[1], ast.Constant)):
                yield Diagnostic(line, "getattr needs a name that can be read")
        elif isinstance(node, ast.FunctionDef):
            yield from _function(node)


def _attribute(node: ast.Attribute, modules: set[str]) -> Iterator[Diagnostic]:
    if node.attr in _WORDS and _WORDS[node.attr]:
        yield Diagnostic(node.lineno, f"'{node.attr}' is not allowed: {_WORDS[node.attr]}")
    elif node.attr.startswith("_") and node.attr not in ("__init__", "_assert"):
        yield Diagnostic(node.lineno, f"'{node.attr}' is not allowed: private names reach out of the module")
    elif isinstance(node.ctx, (ast.Store, ast.Del)) and _root(node) in modules:
        yield Diagnostic(node.lineno, f"'{ast.unparse(node)}' may not be changed: it belongs to {_root(node)}")


def _function(node: ast.FunctionDef) -> Iterator[Diagnostic]:
    """State that a call leaves behind: attributes set in forward, results kept in containers of the module."""
    for decorator in node.decorator_list:
        if "cache" in ast.unparse(decorator):
            yield Diagnostic(node.lineno, "results may not be kept")
    for default in [*node.args.defaults, *node.args.kw_defaults]:
        if isinstance(default, (ast.Dict, ast.List, ast.Set)):
            yield Diagnostic(node.lineno, "a default that can change keeps results between calls")
    if node.name in ("__init__", "reset_parameters"):
        return
    local = {t.id for n in ast.walk(node) if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    local |= {a.arg for a in [*node.args.args, *node.args.kwonlyargs]} - {"self"}
    for inner in ast.walk(node):
        targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target] if isinstance(
            inner, (ast.AugAssign, ast.AnnAssign)) else []  # fmt: skip
        for target in targets:
            if isinstance(target, (ast.Attribute, ast.Subscript)) and _root(target) not in local:
                yield Diagnostic(getattr(inner, "lineno", 0), "state that outlives a call keeps results between calls")
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and _root(inner.func) not in local:
            if inner.func.attr in (
                "append",
                "update",
                "setdefault",
                "add_module",
                "register_buffer",
                "register_parameter",
            ):
                yield Diagnostic(inner.lineno, "state that outlives a call keeps results between calls")


def _high_level(tree: ast.Module) -> Iterator[Diagnostic]:
    for owner in (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "ModelNew"):
        for function in (n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == "forward"):
            for node in ast.walk(function):
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
                    yield Diagnostic(node.lineno, "forward multiplies matrices with torch instead of a kernel")
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _OPS:
                    if _root(node.func) in ("torch", "F", "nn") or _root(node.func) != "self":
                        yield Diagnostic(node.lineno, f"forward calls torch's {node.func.attr} instead of a kernel")


def _strings(tree: ast.Module) -> Iterator[Diagnostic]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and ("__global__" in node.value or "torch::" in node.value)
        ):
            for match in _HOST.finditer(node.value):
                line = node.lineno + node.value[: match.start()].count("\n")
                yield Diagnostic(line, f"'{match[0]}' is not allowed in the extension's source")


def _constants(tree: ast.Module) -> list[str]:
    return [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def _root(node: ast.AST) -> str:
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
