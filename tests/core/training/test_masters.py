"""bf16 parameters are trained on fp32 copies: small updates add up, and a resume goes on with the copies."""

from __future__ import annotations

import copy

import torch

from core.training.masters import MasterAdamW, train_in


def trained(optimizer_of, parameter, steps=60):
    optimizer = optimizer_of(
        [{"params": [parameter], "lr": 1e-5, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0}]
    )
    for _ in range(steps):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return optimizer


def test_updates_below_the_spacing_of_bf16_are_not_lost():
    plain = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    trained(torch.optim.AdamW, plain, 800)
    assert torch.equal(plain, torch.ones_like(plain)), "the trap is not there: nothing is shown"
    exact = torch.nn.Parameter(torch.ones(4))
    trained(torch.optim.AdamW, exact, 800)
    ours = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    trained(MasterAdamW, ours, 800)
    assert torch.equal(ours, exact.bfloat16()) and ours[0] < 1


def test_state_goes_to_a_new_optimizer_bit_for_bit():
    one = torch.nn.Parameter(torch.randn(8, generator=torch.Generator().manual_seed(0)).bfloat16())
    optimizer = trained(MasterAdamW, one, 7)
    two = torch.nn.Parameter(one.detach().clone())
    other = MasterAdamW([{**group, "params": [two]} for group in optimizer.param_groups])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameter, which in ((one, optimizer), (two, other)):
        for _ in range(300):
            parameter.grad = torch.full_like(parameter, 0.5)
            which.step()
    assert torch.equal(one, two)
    for left, right in zip(optimizer.state_dict()["copies"], other.state_dict()["copies"]):
        assert torch.equal(left, right)


def test_the_learning_rate_of_a_schedule_reaches_the_copies():
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = trained(MasterAdamW, parameter, 1)
    optimizer.param_groups[0]["lr"] = 0.5
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert parameter[0] < 0.7


def test_only_trained_parameters_change_their_dtype():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).bfloat16()
    model[0].requires_grad_(False)
    train_in(model, "auto")
    assert model[0].weight.dtype == torch.bfloat16 and model[1].weight.dtype == torch.float32
    train_in(model, "bf16")
    assert model[1].weight.dtype == torch.bfloat16
