"""What an RTL example is: a specification, the interface it asks for, and how an answer is judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from apps.rtl.source import module_names, top_of
from core.errors import DataError
from core.execution.policy import half_character


@dataclass(frozen=True)
class RtlExample:
    """A task.

    Args:
        spec: what the module must do, in words.
        header: the module header `module Top (…);` where it is given. top: name of the module to write.
        reference: Verilog that does it; its top module may have another name, `reference_top`.
        testbench: a module `testbench_top` that instantiates `top` and says at the end how it went; None judges
            only whether the answer compiles.
        files: what the testbench reads from its folder.
        task: what is asked for: a module by "spec", or by "completion" of the header; "assertions" about the reference;
            "hls" bugs in the C++ that `spec` holds.
        answer: the answer wanted, for tasks whose answer is not the reference.
        prompt: the official prompt, where a benchmark has one.
        family, split, id: labels, kept in reports.
    """

    spec: str
    header: str = ""
    top: str = "TopModule"
    reference: str | None = None
    reference_top: str = ""
    testbench: str | None = None
    testbench_top: str = "tb"
    files: dict[str, str] = field(default_factory=dict)
    task: str = "spec"
    answer: str | None = None
    prompt: str = ""
    family: str = ""
    split: str = ""
    id: str | None = None

    def changed(self, **fields: Any) -> RtlExample:
        """The same with other fields."""
        return replace(self, **fields)

    @property
    def target(self) -> str | None:
        """What a model should answer: `answer`, or the reference where a module is asked for."""
        return self.answer if self.answer is not None or self.task in ("assertions", "hls") else self.reference

    @property
    def text(self) -> str:
        """The words a tokenizer would be trained on."""
        return "\n".join(filter(None, [self.spec, self.header, self.reference, self.answer]))

    @property
    def key(self) -> str:
        """A hash of everything that a verdict depends on, besides the answer."""
        parts = [
            self.top,
            self.header,
            self.reference,
            self.reference_top,
            self.testbench,
            self.testbench_top,
            self.task,
        ]
        text = json.dumps([*parts, sorted(self.files.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:24]


_FIELDS = {name: f.type for name, f in RtlExample.__dataclass_fields__.items()}


def to_jsonl(examples: Iterable[RtlExample]) -> str:
    """The simple JSONL form, which the `jsonl` reader reads back to equal examples."""
    rows = ({k: v for k, v in asdict(example).items() if v not in (None, "", {})} for example in examples)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def example_from(row: Any, *, file: str | Path | None = None, line: int | None = None) -> RtlExample:
    """An `RtlExample` from a dictionary in the simple JSONL form; every field's type is checked.

    Raises:
        DataError: a field is unknown, missing or ill-typed, or the Verilog does not fit together.
    """
    if not isinstance(row, dict):
        raise DataError("the row is not an object", file=file, line=line, got=row, expected='{"spec": …, "header": …}')
    unknown = set(row) - set(_FIELDS) - {"meta", "prediction", "score"}
    if unknown:
        hint = f"known: {', '.join(_FIELDS)}"
        raise DataError("unknown field", file=file, line=line, field=sorted(unknown)[0], hint=hint)
    values = {name: row[name] for name in _FIELDS if row.get(name) is not None}
    if not isinstance(values.get("spec"), str) or not values["spec"].strip():
        raise DataError(
            "wrong value", file=file, line=line, field="spec", got=row.get("spec"), expected="a specification in words"
        )
    for name, value in values.items():
        if name == "files":
            if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
                raise DataError("wrong value", file=file, line=line, field=name, got=value, expected="{name: text}")
        elif name == "id":
            values[name] = str(value)
        elif not isinstance(value, str):
            raise DataError("wrong value", file=file, line=line, field=name, got=value, expected="a string")
        elif (half := half_character(value)) is not None:
            raise DataError("wrong value", file=file, line=line, field=name, got=half, expected="whole characters")
    try:
        return completed(RtlExample(**values), given="top" in values)
    except DataError as error:
        raise DataError(
            error.what, file=file, line=line, field=getattr(error, "field", None), hint=error.hint
        ) from error


def completed(example: RtlExample, given: bool = True) -> RtlExample:
    """The example with the names that follow from its Verilog, checked for what would fail much later.

    Raises:
        DataError: a header without `module`, a reference without modules, a testbench without its top.
    """
    changes: dict[str, Any] = {}
    if example.header:
        names = module_names(example.header)
        if not names:
            raise DataError(
                "the header has no 'module'", field="header", got=example.header, expected="module Top (…);"
            )
        if not given:
            changes["top"] = names[0]
        elif example.top not in names:
            raise DataError(
                "the header is of another module", field="header", got=names[0], expected=f"module {example.top}"
            )
    top = changes.get("top", example.top)
    if example.reference is not None and not example.reference_top:
        names = module_names(example.reference)
        if not names:
            raise DataError("the reference has no module", field="reference", got=example.reference[:60])
        changes["reference_top"] = top if top in names else (top_of(example.reference) or names[-1])
    if example.testbench is not None and example.testbench_top not in module_names(example.testbench):
        names = module_names(example.testbench)
        hint = f"it has: {', '.join(names) or 'no module'}; name its top in testbench_top"
        raise DataError(f"the testbench has no module '{example.testbench_top}'", field="testbench", hint=hint)
    return RtlExample(**{**asdict(example), **changes})
