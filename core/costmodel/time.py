"""Seconds of a training step: operations over the rate the device reaches, or bytes over its bandwidth.

Matrix products take the larger of compute and memory time (the roofline of Williams et al. 2009); what is not a
product is bound by memory and is told by the bytes that it reads and writes. The constants were fitted on measured
steps; nothing is measured when predicting.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.costmodel.hardware import Device
from core.costmodel.memory import FP32
from core.costmodel.workload import Workload, format_bytes

# Share of a product's rate that causal attention reaches, forward and backward together.
ATTENTION = 0.5
# Bytes moved a token and unit of width by what is not a product, forward and backward, in plain kernels and fused ones.
PLAIN_MOVES, FUSED_MOVES = 340.0, 100.0
# Seconds in which the host launches a block's kernels, forward and backward; LoRA's small products double them. Short
# batches of small models wait for it. Fitted on a rented H100's host, no fast one.
HOST = 5e-3


@dataclass(frozen=True)
class Step:
    """Seconds of an optimizer step by part, and the operations that count as useful.

    Args:
        host: what launching takes, at the same time as all the rest.
    """

    products: float
    attention: float
    elementwise: float
    head: float
    optimizer: float
    useful: float
    host: float = 0.0

    @property
    def seconds(self) -> float:
        return max(self.products + self.attention + self.elementwise + self.head + self.optimizer, self.host)


def predict_time(work: Workload, device: Device) -> Step:
    """Seconds of one optimizer step with all its accumulation passes."""
    shape, n, passes = work.shape, work.tokens, work.accumulation
    peak = (device.bf16 if work.compute == 2 else device.fp32) * device.reached
    backward_weights = 0 if work.rank else 1
    again = {"none": 0.0, "selective": 0.5, "full": 1.0}[work.checkpointing]
    times = 2 + backward_weights + again

    def product(inside: int, outside: int) -> float:
        operations = 2.0 * n * inside * outside
        seconds = operations / (peak * operations / (operations + device.half_rate))
        moved = work.compute * (n * (inside + outside) + inside * outside)
        return max(seconds, moved / device.bandwidth) + device.launch

    linear = sum(product(linear.inside, linear.outside) for linear in shape.linears.values())
    low = sum(
        product(shape.linears[name].inside, work.rank) + product(work.rank, shape.linears[name].outside)
        for name in work.targets
    )
    products = passes * shape.layers * (times * linear + (times + 1) * low)
    # causal attention: half of the square; the backward pass is 2.5 times the forward one
    forward = 2.0 * n * work.length * shape.query
    attention = passes * shape.layers * forward * (3.5 + again) / (ATTENTION * peak)
    moves = FUSED_MOVES if "layers" in work.fused else PLAIN_MOVES
    width = shape.hidden + shape.ffn / 2
    elementwise = passes * shape.layers * n * moves * (1 + again / 3) * width * work.compute / 2 / device.bandwidth
    if work.quantization != "none":
        # every use of a weight unpacks it first
        unpacked = shape.linear_weights * (work.compute + format_bytes(work.quantization, work.stored))
        elementwise += passes * (2 + again) * unpacked / device.bandwidth
    head_times = 3 if "head" in work.fused and not work.rank else 2 + (work.rank == 0)
    head = passes * (
        head_times * product(shape.hidden, shape.vocabulary)
        + n * shape.vocabulary * (4 * work.compute + 6 * FP32) / device.bandwidth
    )
    states = (work.adapter_parameters * FP32 if work.rank else shape.parameters * work.stored) * 7
    optimizer = states / device.bandwidth + 1e-3
    useful = passes * n * (2.0 * (2 + backward_weights) * (shape.linear_weights + shape.vocabulary * shape.hidden))
    host = passes * shape.layers * HOST * (2 if work.rank else 1) * (1 + again / 3) if device.is_gpu else 0.0
    return Step(products, attention, elementwise, head, optimizer, useful + attention * ATTENTION * peak, host)


def tokens_a_second(work: Workload, device: Device) -> float:
    """Tokens of all accumulation passes over the seconds of a step."""
    return work.accumulation * work.tokens / predict_time(work, device).seconds
