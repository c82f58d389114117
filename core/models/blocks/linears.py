"""One linear map in another form, and linear maps of another size."""

from __future__ import annotations

from typing import Any

from core.errors import ConfigError, nearest
from core.models.linear import features, is_linear_like
from core.models.linear_form import form_class


def linear_form(model: Any, path: str, form: str, spec: dict[str, Any], values: Any = None) -> None:
    """Replace the linear map at `path` by an empty form, or by `values`, a form that holds its weight already."""
    class_ = form_class(form)
    names = [name for name, module in model.named_modules() if is_linear_like(module)]
    if path not in names:
        hint = (
            nearest(path, names)
            or f"linear maps here end in {', '.join(sorted({n.rpartition('.')[2] for n in names}))}"
        )
        raise ConfigError(f"no linear map '{path}'", where="linear_form", hint=hint)
    old = model.get_submodule(path)
    weight = next(old.parameters())
    inside, outside = features(old)
    if values is None:
        bias = getattr(old, "bias", None) is not None
        values = class_.empty(inside, outside, bias, device=weight.device, dtype=weight.dtype, **spec)
    elif (values.in_features, values.out_features) != (inside, outside):
        raise ConfigError(
            f"a map of {values.in_features} to {values.out_features} for one of {inside} to {outside}", where=path
        )
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, values)


def resized(linear: Any, inside: int | None = None, outside: int | None = None) -> Any:
    """A `nn.Linear` without values like `linear` in device, dtype and bias, with other sizes where they are given."""
    from torch import nn

    old_inside, old_outside = features(linear)
    return nn.Linear(
        old_inside if inside is None else inside,
        old_outside if outside is None else outside,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )


def put(block: Any, old: Any, new: Any) -> None:
    """Replace the module `old` below `block` by `new`, wherever it hangs."""
    for parent in block.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
                return
    raise ValueError("the module is not below the block")
