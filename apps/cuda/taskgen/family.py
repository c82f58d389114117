"""What a family of generated operators is: parameters, and for each a reference, words, and kernels that are right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from apps.cuda.source import candidate

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Built:
    """A member of a family.

    Args:
        reference: the PyTorch module. does: what it does, in several wordings. answer: a candidate that is right.
    """

    reference: str
    does: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Family:
    """A kind of operator.

    Args:
        build: a member from its parameters. space: values of each parameter. tuned: the parameters that change only how
            fast a member is; the others change what it computes.
    """

    name: str
    build: Callable[..., Built]
    space: Mapping[str, Sequence[Any]]
    tuned: tuple[str, ...] = ()
    allowed: Callable[[Params], bool] = field(default=lambda params: True)

    def members(self) -> Iterator[dict[str, Any]]:
        """Every combination of parameters that makes sense."""
        for values in product(*self.space.values()):
            params = dict(zip(self.space, values))
            if self.allowed(params):
                yield params

    def variants(self, params: Params) -> Iterator[dict[str, Any]]:
        """The members that compute the same as `params`."""
        for other in self.members():
            if all(other[name] == params[name] for name in self.space if name not in self.tuned):
                yield other


FAMILIES: dict[str, Family] = {}


def family(name: str, space: Mapping[str, Sequence[Any]], tuned: Sequence[str] = (),
           allowed: Callable[[Params], bool] = lambda params: True) -> Callable:  # fmt: skip
    """Register the decorated builder."""

    def registered(build: Callable[..., Built]) -> Callable[..., Built]:
        FAMILIES[name] = Family(name, build, space, tuple(tuned), allowed)
        return build

    return registered


def reference(forward: str, arguments: str, inputs: Sequence[str], sizes: Mapping[str, int], *, init: str = "",
              init_arguments: str = "", given: str = "") -> str:  # fmt: skip
    """The source of a reference module.

    Args:
        forward: its expression. arguments: of forward. inputs: expressions over `sizes`. init: statements of __init__.
        init_arguments: of __init__. given: what get_init_inputs returns.
    """
    body = f"    def __init__(self{', ' + init_arguments if init_arguments else ''}):\n        super().__init__()\n"
    body += "".join(f"        {line}\n" for line in init.splitlines()) if init else ""
    constants = "".join(f"{name} = {value}\n" for name, value in sizes.items())
    return (
        "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n\n\nclass Model(nn.Module):\n"
        f"{body}\n    def forward(self, {arguments}):\n        return {forward}\n\n\n{constants}\n\n"
        f"def get_inputs():\n    return [{', '.join(inputs)}]\n\n\ndef get_init_inputs():\n    return [{given}]\n"
    )


def answer(code: str, launches: Sequence[Mapping[str, Any]], *, sizes: Mapping[str, str] | None = None,
           scratch: Mapping[str, Any] | None = None, zero: Sequence[str] = ()) -> str:  # fmt: skip
    """A candidate from code and the parts of its plan."""
    plan: dict[str, Any] = {}
    if sizes:
        plan["sizes"] = dict(sizes)
    if scratch:
        plan["scratch"] = dict(scratch)
    if zero:
        plan["zero"] = list(zero)
    rows = ",\n  ".join(json.dumps(dict(launch)) for launch in launches)
    head = json.dumps(plan)[1:-1]
    return candidate(code, "{" + (head + ",\n " if head else "") + f'"launches": [\n  {rows}]}}')


def launch(
    kernel: str, grid: Sequence[Any], block: Sequence[Any], args: Sequence[Any], shared: Any = 0
) -> dict[str, Any]:
    """One launch of a plan."""
    row: dict[str, Any] = {"kernel": kernel, "grid": list(grid), "block": list(block), "args": list(args)}
    return {**row, "shared": shared} if shared else row
