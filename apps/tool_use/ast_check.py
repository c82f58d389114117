"""Whether calls are right, by the leaderboard's rules for Python: the same verdict and the same kind of error.

Rules (Patil et al. 2025, BFCL): every argument has a list of values that count as right, in which "" marks that it may
be left out. A value has exactly the documented type; an integer may stand for a float, not the other way round, and a
boolean is no integer. Texts are compared without spaces and `,./-_*^`, in lower case, with one kind of quotes; lists
after the same folding of their texts; dictionaries key by key. Types inside a list are looked at one level deep. Calls
made at once match in any order, each expected call taking the first that fits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.tool_use.calls import Call
from apps.tool_use.spec import ToolSpec, python_type

TYPES = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
}  # fmt: skip
SINGLE, PARALLEL, SEVERAL = "simple_function_checker", "parallel_function_checker_no_order", "multiple_function_checker"


@dataclass(frozen=True)
class AstVerdict:
    """Right or not, and the kind of the first error."""

    valid: bool
    error: str | None = None
    detail: str = ""


RIGHT = AstVerdict(True)


def check(
    tools: Sequence[ToolSpec], calls: Sequence[Call], expected: Sequence[Mapping[str, Any]], category: str
) -> AstVerdict:
    """The verdict on a model's calls.

    Args:
        expected: for each call {name: {argument: [values that count]}}.
        category: one of the leaderboard's; "parallel" in it allows any order.
    """
    if "parallel" in category:
        return _in_any_order(tools, calls, expected)
    kind = SEVERAL if "multiple" in category else SINGLE
    if len(calls) != len(expected) or (kind == SINGLE and len(calls) != 1):
        return AstVerdict(False, f"{kind}:wrong_count", f"{len(calls)} calls, {len(expected)} expected")
    name = next(iter(expected[0]))
    tool = tools[0] if kind == SINGLE else _named(tools, name)
    return check_call(tool, calls[0], expected[0][name])


def _named(tools: Sequence[ToolSpec], name: str) -> ToolSpec:
    return next(tool for tool in tools if tool.name == name)


def _in_any_order(
    tools: Sequence[ToolSpec], calls: Sequence[Call], expected: Sequence[Mapping[str, Any]]
) -> AstVerdict:
    if len(calls) != len(expected):
        return AstVerdict(False, f"{PARALLEL}:wrong_count", f"{len(calls)} calls, {len(expected)} expected")
    free = list(range(len(calls)))
    for number, wanted in enumerate(expected):
        name = next(iter(wanted))
        tool = _named(tools, name)
        fitting = next((i for i in free if check_call(tool, calls[i], wanted[name]).valid), None)
        if fitting is None:
            return AstVerdict(
                False, f"{PARALLEL}:cannot_find_match", f"nothing matches expected call {number} ({name})"
            )
        free.remove(fitting)
    return RIGHT


def check_call(tool: ToolSpec, call: Call, expected: Mapping[str, Sequence[Any]]) -> AstVerdict:
    """The verdict on one call to `tool`, whose arguments must be among those expected."""
    if call.name != tool.name:
        return AstVerdict(False, f"{SINGLE}:wrong_func_name", f"{call.name} instead of {tool.name}")
    for name in tool.required:
        if name not in call.arguments:
            return AstVerdict(False, f"{SINGLE}:missing_required", name)
    for name, value in call.arguments.items():
        if name not in tool.properties or name not in expected:
            return AstVerdict(False, f"{SINGLE}:unexpected_param", name)
        verdict = check_value(name, value, tool.properties[name], expected[name])
        if not verdict.valid:
            return verdict
    for name, values in expected.items():
        if name not in call.arguments and "" not in values:
            return AstVerdict(False, f"{SINGLE}:missing_optional", name)
    return RIGHT


def check_value(name: str, value: Any, schema: Mapping[str, Any], allowed: Sequence[Any]) -> AstVerdict:
    """The verdict on one argument: first its type, then its value."""
    kind = python_type(schema)
    wanted = TYPES.get(kind, str)
    inner = TYPES.get(python_type(schema.get("items", {})), str) if kind in ("array", "tuple") else None
    if kind == "tuple" and type(value) is tuple:
        value = list(value)
    if kind == "float" and type(value) is int:
        value = float(value)
    verdict, is_variable = _type_verdict(name, value, allowed, wanted, inner)
    if not verdict.valid:
        return verdict
    if not is_variable:
        if wanted is dict:
            return _dictionary(value, allowed)
        if wanted is list and inner is dict:
            return _dictionaries(value, allowed)
        if wanted is str:
            right = folded(value) in [folded(v) for v in allowed if type(v) is str]
            return RIGHT if right else AstVerdict(False, "value_error:string", f"{name}={value!r}")
        if wanted is list:
            # an allowed value that is no list is compared letter by letter, as there
            right = [_folded(v) for v in value] in [[_folded(v) for v in option] for option in allowed]
            return RIGHT if right else AstVerdict(False, "value_error:list/tuple", f"{name}={value!r}")
    return RIGHT if value in allowed else AstVerdict(False, "value_error:others", f"{name}={value!r}")


def _type_verdict(
    name: str, value: Any, allowed: Sequence[Any], wanted: type, inner: type | None
) -> tuple[AstVerdict, bool]:
    """Whether the type fits, and whether the expected answer is the name of a variable rather than a value."""
    example = next((type(v) for v in allowed if v != ""), None)
    is_variable = example is not None and example is not wanted
    shown = f"{name}: {type(value).__name__} instead of {wanted.__name__}"
    outer = type(value) is wanted
    if outer and (inner is None or any(_inner_fits(name, value, option, inner) for option in allowed)):
        return RIGHT, is_variable
    if example is not None and type(value) is example:
        return (AstVerdict(False, "type_error:nested", f"items of {name}") if outer else RIGHT), True
    return AstVerdict(False, "type_error:simple", shown), False


def _inner_fits(name: str, value: list[Any], option: Any, inner: type) -> bool:
    if type(option) is not list:
        return True
    return all(_type_verdict(name, item, option, inner, None)[0].valid for item in value)


def folded(text: str) -> str:
    """A text as it is compared."""
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _folded(value: Any) -> Any:
    return folded(value) if type(value) is str else value


def _dictionary(value: Mapping[str, Any], allowed: Sequence[Any]) -> AstVerdict:
    """The verdict against the first dictionary that fits, else that against the last."""
    verdict = AstVerdict(False, "dict_checker:unclear")
    for option in allowed:
        if option == "":
            continue
        verdict = _against(value, option)
        if verdict.valid:
            return verdict
    return verdict


def _against(value: Mapping[str, Any], option: Mapping[str, Any]) -> AstVerdict:
    verdict = RIGHT
    for name, item in value.items():
        if name not in option:
            verdict = AstVerdict(False, "value_error:dict_key", f"unexpected key {name}")
            break
        if _folded(item) not in [_folded(v) for v in _listed(option[name])]:
            verdict = AstVerdict(False, "value_error:dict_value", f"{name}={item!r}")
            break
    for name, values in option.items():
        if name not in value and "" not in _listed(values):
            return AstVerdict(False, "value_error:dict_key", f"missing key {name}")
    return verdict


def _listed(values: Any) -> Sequence[Any]:
    return values if isinstance(values, list) else [values]


def _dictionaries(value: Sequence[Any], allowed: Sequence[Any]) -> AstVerdict:
    verdict = AstVerdict(False, "list_dict_checker:unclear")
    for option in allowed:
        if len(value) != len(option):
            verdict = AstVerdict(False, "value_error:list_dict_count", f"{len(value)} dictionaries")
            continue
        verdict = RIGHT
        for item, expected in zip(value, option):
            verdict = _dictionary(item, [expected])
            if not verdict.valid:
                break
        else:
            return RIGHT
    return verdict
