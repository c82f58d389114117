"""Peak memory of a training step, by category, from the tensors that the backward pass keeps.

What a block keeps is told site by site (norms, projections, attention, MLP, adapters, head), in bytes a token, as the
autograd formulas of the kernels in use keep it: a product keeps its input only when its weight trains, scaled
dot-product attention keeps q, k, v, its output and one number a head, a norm keeps its input in fp32. Fused kernels
keep less (Dao et al. 2022; Hsu et al. 2024). With checkpointing (Chen et al. 2016) a block keeps its input alone and
one block is alive at a time. The peak is the largest of three moments: the loss at the end of the forward pass, the
last block's backward pass, and the optimizer's step.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.costmodel.workload import FORMATS, Workload

GIB = 2**30
FP32 = 4
# What the matrix library keeps for itself on a GPU, in bytes.
WORKSPACE = 64 * 2**20
CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class Memory:
    """Bytes at the moment of the peak. `peak` names the moment; `reserved` adds what the allocator cannot give back."""

    weights: float
    adapters: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    working: float
    peak: str

    @property
    def total(self) -> float:
        return (
            self.weights + self.adapters + self.gradients + self.optimizer
            + self.activations + self.head + self.working
        )  # fmt: skip

    @property
    def reserved(self) -> float:
        """What must be free for the run to be safe: the peak, fragmentation, and the device's own context."""
        return 1.04 * self.total + 0.6 * GIB

    def by_category(self) -> dict[str, float]:
        names = ("weights", "adapters", "gradients", "optimizer", "activations", "head", "working")
        return {name: getattr(self, name) for name in names}


def predict_memory(work: Workload, *, gpu: bool = True) -> Memory:
    """The peak of a step in steady state, when gradients and moments exist.

    Args:
        gpu: adds what the matrix library takes for itself.
    """
    shape, layers = work.shape, work.shape.layers
    weights, adapters = weight_bytes(work), work.adapter_parameters * FP32
    trained = work.adapter_parameters * FP32 if work.rank else shape.parameters * work.stored
    gradients, optimizer = trained, 2 * trained
    block = sum(block_bytes(work).values()) * work.tokens
    edge = outside_bytes(work) + _head_input(work) * work.tokens
    if work.checkpointing:
        kept, alive = layers * shape.hidden * work.stored * work.tokens + edge, block
    else:
        kept, alive = layers * block + edge, 0.0
    # With one pass a step there are no gradients yet when the loss is computed.
    at_loss = gradients if work.accumulation > 1 else 0.0
    in_block = at_loss if work.accumulation > 1 else _first_gradients(work)
    moments = {
        "loss": (at_loss, kept, head_bytes(work), 0.0),
        "block": (in_block, kept, 0.0, alive + backward_bytes(work) * work.tokens),
        "step": (gradients, 0.0, 0.0, 0.0),
    }
    name = max(moments, key=lambda m: sum(moments[m]))
    held, activations, head, working = moments[name]
    extra = copies_bytes(work) if name != "step" else 0.0
    return Memory(
        weights + extra, adapters, held, optimizer, activations, head, working + (WORKSPACE if gpu else 0), name
    )


def weight_bytes(work: Workload) -> float:
    """The base's weights, the quantized ones in their format."""
    shape = work.shape
    if work.quantization == "none":
        return shape.parameters * work.stored
    dense = shape.parameters - shape.linear_weights
    return shape.linear_weights * FORMATS[work.quantization] + dense * work.stored


def copies_bytes(work: Workload) -> float:
    """Weights that autocast has turned into the compute format, kept for the backward pass."""
    if work.stored <= work.compute or work.quantization != "none":
        return 0.0
    shape = work.shape
    return work.compute * (shape.linear_weights + shape.vocabulary * shape.hidden)


def block_bytes(work: Workload) -> dict[str, float]:
    """Bytes a token that one block keeps for its backward pass, by site."""
    shape, a, p = work.shape, work.compute, work.stored
    full = work.rank == 0
    cast = p > a
    h, f, q, k = shape.hidden, shape.ffn, shape.query, shape.key
    stream = FP32 if cast else p

    norms = 2.0 * _norm(work, h)
    if shape.head_norms:
        norms += _norm(work, q) + _norm(work, k)

    if full:
        inputs = a * (3 * h + 2 * h + q * cast) if cast else stream * 2 * h
        projections = inputs + a * f
    else:
        projections = 0.0
    attention = a * (2 * q + 2 * k) + FP32 * shape.heads
    if work.separate and "attention" not in work.fused:
        attention += 2 * a * (q - k)
    if shape.family == "gpt_neox":
        # the values are a view of queries, keys and values, which are one tensor
        attention += a * (q + k)
    mlp = _mlp(work, f)
    adapters = _adapters(work)
    return {"norms": norms, "projections": projections, "attention": attention, "mlp": mlp, "adapters": adapters}


def _norm(work: Workload, width: int) -> float:
    full, p = work.rank == 0, work.stored
    if "norm" in work.fused:
        return p * width + FP32
    if not work.shape.rms:
        return FP32 * width + 2 * FP32
    return FP32 * width + FP32 + (p * width if full else 0)


def _mlp(work: Workload, f: int) -> float:
    a = work.compute
    if not work.shape.gated:
        return a * f if work.shape.family != "gpt2" else 4 * a * f
    return 2 * a * f if "mlp" in work.fused else 3 * a * f


def _adapters(work: Workload) -> float:
    """Inputs and inner activations of the adapters' products."""
    if not work.rank:
        return 0.0
    shape, a = work.shape, work.compute
    low = a * work.rank * len(work.targets)
    inputs = 0.0
    seen: set[str] = set()
    for name in work.targets:
        width = shape.linears[name].inside
        group = SHARED_INPUT.get(name, name)
        if work.adapter_dropout:
            inputs += width * (a + 1)
        elif "lora" in work.fused or a == FP32:
            # q, k and v read one tensor, and so do gate and up; what attention puts out it keeps itself
            inputs += a * width if group not in seen and group != "o_proj" else 0
            inputs -= a * width if "mlp" in work.fused and group == "down_proj" and "lora" in work.fused else 0
            seen.add(group)
        else:
            inputs += a * width
    return inputs + low


# Linear maps that read one tensor; what attention puts out is kept by attention already.
SHARED_INPUT = {
    "k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj", "dense": "o_proj", "attn.c_proj": "o_proj",
}  # fmt: skip


def outside_bytes(work: Workload) -> float:
    """Bytes kept outside the blocks: the final norm, ids, rotary phases; less what adapters spare the first block."""
    shape = work.shape
    spared = _norm(work, shape.hidden) if work.rank else 0.0
    phases = 0 if shape.positions else 2 * work.stored * shape.head_dim * work.length
    return work.tokens * (_norm(work, shape.hidden) - spared + 8 * (work.rank == 0)) + phases


def head_bytes(work: Workload) -> float:
    """Logits and what the loss makes of them at its peak."""
    shape, a = work.shape, work.compute
    if "head" in work.fused:
        tokens = min(work.tokens, CHUNK_TOKENS)
        return tokens * shape.vocabulary * (a + 2 * FP32)
    # the logits, their shifted copy, in fp32 those that carry loss, and their log-probabilities
    return work.tokens * shape.vocabulary * (2 * a + 2 * FP32)


def backward_bytes(work: Workload) -> float:
    """Bytes a token that live while the last block's backward pass runs, beside what is kept."""
    shape, a = work.shape, work.compute
    return 3 * a * shape.ffn + 2 * FP32 * shape.hidden


def _head_input(work: Workload) -> float:
    """What the head keeps a token: its input, when its weight trains or the loss recomputes the logits."""
    return work.compute * work.shape.hidden if work.rank == 0 or "head" in work.fused else 0.0


def _first_gradients(work: Workload) -> float:
    """Gradients of head and last block, which exist when the last block's backward pass is at its peak."""
    if work.rank:
        return 0.0
    shape = work.shape
    return work.stored * (shape.vocabulary * shape.hidden + shape.block_parameters)
