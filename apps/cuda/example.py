"""What a CUDA example is: an operator as a PyTorch module, and how a kernel for it is judged."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.execution.policy import half_character

REQUIRED = ("Model", "get_inputs", "get_init_inputs")


@dataclass(frozen=True)
class CudaExample:
    """A task.

    Args:
        reference: Python that defines `Model` (a torch module), `get_inputs()` and `get_init_inputs()`, as in
            KernelBench (Ouyang et al. 2025).
        spec: what the kernel must do, in words; empty takes the reference as the words.
        solution: an answer that is right, for training: CUDA C++ opened by its launch plan.
        sizes: module constants of the reference to replace, e.g. {"batch_size": 8}.
        tolerance: absolute and relative; None follows the type of the output.
        level, name, family, split, id: labels, kept in reports.
    """

    reference: str
    spec: str = ""
    solution: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    tolerance: float | None = None
    level: str = ""
    name: str = ""
    family: str = ""
    split: str = ""
    id: str | None = None

    @property
    def text(self) -> str:
        """The words a tokenizer would be trained on."""
        return "\n".join(filter(None, [self.spec, self.reference, self.solution]))

    @property
    def key(self) -> str:
        """A hash of everything that a verdict depends on, besides the answer."""
        what = json.dumps([self.reference, sorted(self.sizes.items()), self.tolerance])
        return hashlib.sha256(what.encode()).hexdigest()[:24]


_FIELDS = tuple(CudaExample.__dataclass_fields__)


def to_jsonl(examples: Iterable[CudaExample]) -> str:
    """The simple JSONL form, which the `jsonl` reader reads back to equal examples."""
    rows = ({k: v for k, v in asdict(example).items() if v not in (None, "", {})} for example in examples)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def example_from(row: Any, *, file: str | Path | None = None, line: int | None = None) -> CudaExample:
    """A `CudaExample` from a dictionary in the simple JSONL form; every field's type is checked.

    Raises:
        DataError: a field is unknown, missing or ill-typed, or the reference is not such a module.
    """
    if not isinstance(row, dict):
        raise DataError("the row is not an object", file=file, line=line, got=row, expected='{"reference": …}')
    unknown = set(row) - set(_FIELDS) - {"meta", "prediction", "score"}
    if unknown:
        hint = f"known: {', '.join(_FIELDS)}"
        raise DataError("unknown field", file=file, line=line, field=sorted(unknown)[0], hint=hint)
    values = {name: row[name] for name in _FIELDS if row.get(name) is not None}
    if not isinstance(values.get("reference"), str) or not values["reference"].strip():
        raise DataError("wrong value", file=file, line=line, field="reference", got=row.get("reference"),
                        expected="Python that defines Model, get_inputs and get_init_inputs")  # fmt: skip
    for name, value in values.items():
        if name == "sizes":
            if not isinstance(value, dict) or not all(isinstance(v, int) and v > 0 for v in value.values()):
                raise DataError("wrong value", file=file, line=line, field=name, got=value, expected="{name: size}")
        elif name == "tolerance":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise DataError("wrong value", file=file, line=line, field=name, got=value, expected="a number > 0")
        elif name in ("id", "level"):
            values[name] = str(value)
        elif not isinstance(value, str):
            raise DataError("wrong value", file=file, line=line, field=name, got=value, expected="a string")
        elif (half := half_character(value)) is not None:
            raise DataError("wrong value", file=file, line=line, field=name, got=half, expected="whole characters")
    check_reference(values["reference"], file=file, line=line)
    return CudaExample(**values)


def check_reference(source: str, *, file: str | Path | None = None, line: int | None = None) -> None:
    """Raise `DataError` unless `source` parses and defines what a reference must. Nothing of it is run."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        place = f"line {error.lineno} of the reference: " if isinstance(error, SyntaxError) else ""
        what = getattr(error, "msg", None) or str(error) or "it is nested too deeply"
        raise DataError(f"{place}{what}", file=file, line=line, field="reference") from error
    defined = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    missing = [name for name in REQUIRED if name not in defined]
    if missing:
        raise DataError(
            f"the reference does not define {', '.join(missing)}", file=file, line=line, field="reference",
            hint="a class Model(nn.Module), get_inputs() -> list of tensors, get_init_inputs() -> list",
        )  # fmt: skip
