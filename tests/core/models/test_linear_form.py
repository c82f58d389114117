"""Every form is the linear map of its dense weight, comes back from a state dict, and has that map's gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core.errors import ConfigError, MergeError, UnsupportedError
from core.models.linear import LinearLike, is_linear_like
from core.models.linear_form import FORMS, LowRankLinear, MaskedLinear, Semi24Linear, form_class


def two_of_four(out, inside):
    weight = torch.randn(out, inside)
    order = torch.rand(out, inside // 4, 4).argsort(-1)
    return weight * (order < 2).flatten(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def made(kind, bias):
    b = torch.randn(6) if bias else None
    if kind == "lowrank":
        return LowRankLinear.from_dense(torch.randn(6, 8), b, rank=3)
    if kind == "semi24":
        return Semi24Linear.from_dense(two_of_four(6, 8), b)
    return MaskedLinear.from_dense(torch.randn(6, 8), b, torch.rand(6, 8) < 0.5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["masked", "semi24", "lowrank"])
def test_the_contract(kind, bias):
    form = made(kind, bias)
    assert isinstance(form, form_class(kind)) and is_linear_like(form) and isinstance(form, LinearLike)
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(form(x), F.linear(x, form.dense_weight(), form.bias), rtol=1e-5, atol=1e-6)
    again = form_class(kind).empty(8, 6, bias, device="meta", **form.describe()).to_empty(device="cpu")
    again.load_state_dict(form.state_dict())
    assert torch.equal(again(x), form(x))
    held = [t for n, t in [*form.named_parameters(), *form.named_buffers()] if not n.endswith("bias")]
    assert form.storage_bytes() == sum(t.numel() * t.element_size() for t in held)
    assert form.dense_weight(torch.bfloat16).dtype == torch.bfloat16 and kind in form.spec


@pytest.mark.parametrize("kind", ["masked", "lowrank"])
def test_gradients_are_those_of_the_dense_map(kind):
    form = made(kind, True).double()
    x, out = torch.randn(4, 8, dtype=torch.double), torch.randn(4, 6, dtype=torch.double)
    (form(x) * out).sum().backward()
    dense = out.T @ x
    if kind == "masked":
        torch.testing.assert_close(form.weight.grad, dense * form.mask)
    else:
        torch.testing.assert_close(form.u.weight.grad, dense @ form.v.weight.T)
        torch.testing.assert_close(form.v.weight.grad, form.u.weight.T @ dense)


def test_the_truncation_error_is_the_dropped_spectrum():
    weight = torch.randn(6, 8)
    values = torch.linalg.svdvals(weight)
    for rank in (1, 3, 6):
        error = (LowRankLinear.from_dense(weight, rank=rank).dense_weight() - weight).square().sum()
        torch.testing.assert_close(error, values[rank:].square().sum(), atol=1e-5, rtol=1e-5)


def test_a_masked_map_takes_only_what_fits():
    form = made("masked", False)
    fits = torch.randn(6, 8) * form.mask
    form.set_dense_weight(fits)
    assert torch.equal(form.dense_weight(), fits)
    with pytest.raises(MergeError, match="mask"):
        form.set_dense_weight(fits + 1)
    with pytest.raises(MergeError):
        made("lowrank", False).set_dense_weight(fits)


def test_bad_forms_are_refused():
    with pytest.raises(ConfigError, match="rank 9"):
        LowRankLinear.from_dense(torch.randn(6, 8), rank=9)
    with pytest.raises(ConfigError, match="groups of four"):
        Semi24Linear.empty(6, 4)
    with pytest.raises(ConfigError, match="more than two"):
        Semi24Linear.from_dense(torch.randn(4, 8))
    with pytest.raises(UnsupportedError, match="CUDA"):
        made("semi24", False).pack()
    with pytest.raises(ConfigError, match="did you mean 'lowrank'"):
        try:
            form_class("low_rank")
        except ConfigError as error:
            raise ConfigError(str(error)) from None
    assert {"masked", "semi24", "lowrank"} <= set(FORMS.names())
