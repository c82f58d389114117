"""Peak memory of a training step, by category, from the tensors that the backward pass keeps.

What a block keeps is told site by site (norms, projections, attention, MLP, adapters, head), in bytes a token, as the
autograd formulas of the kernels in use keep it: a product keeps its input only when its weight trains, scaled
dot-product attention keeps q, k, v, its output and one number a head, a norm keeps its input in fp32. Fused kernels
keep less (Dao et al. 2022; Hsu et al. 2024). With checkpointing (Chen et al. 2016) a block keeps its input alone and
one block is alive at a time. The peak is the largest of five moments: the loss at the end of the forward pass, the
backward pass of the last block, of the first one and of the embedding, and the optimizer's step.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.costmodel.workload import Workload, format_bytes

GIB = 2**30
FP32 = 4
# What the matrix library keeps for itself on a GPU, in bytes.
WORKSPACE = 40 * 2**20
# Logits that exist at one time in the fused loss.
PIECE = 512 * 2**20


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
    each = (2 if work.masters else FP32) if work.rank else work.stored
    weights, adapters = weight_bytes(work), work.adapter_parameters * each
    gradients = work.trainable * each
    optimizer = work.trainable * (3 if work.masters else 2) * FP32
    block = sum(block_bytes(work).values()) * work.tokens
    edge = outside_bytes(work) + work.stored * shape.hidden * work.tokens
    recomputed = {"none": 0, "selective": layers // 2, "full": layers}[work.checkpointing]
    stream = shape.hidden * work.stored * work.tokens
    # from the host, one input is there to be used and one more on its way
    kept = (layers - recomputed) * block + (min(recomputed, 2) if work.offloaded else recomputed) * stream
    # a recomputed block's input is what was kept of it, where it was kept here
    alive = (block if work.offloaded else block - stream) if recomputed else 0.0
    # With one pass a step there are no gradients yet when the loss is computed.
    at_loss = gradients if work.accumulation > 1 else 0.0
    in_block = at_loss if work.accumulation > 1 else _first_gradients(work)
    copies = copies_bytes(work)
    moments = {
        "loss": (at_loss, kept + edge, head_bytes(work), copies),
        "last block": (in_block, kept, 0.0, alive + backward_bytes(work) + (copies if alive == 0 else 0)),
        "first block": (gradients - _last_gradients(work), block, 0.0, backward_bytes(work)),
        "embedding": (gradients, 0.0, 0.0, _table_gradient(work)),
        "step": (gradients, 0.0, 0.0, work.trainable * FP32 if work.masters else 0.0),
    }
    name = max(moments, key=lambda m: sum(moments[m]))
    held, activations, head, working = moments[name]
    return Memory(weights, adapters, held, optimizer, activations, head, working + (WORKSPACE if gpu else 0), name)


def weight_bytes(work: Workload) -> float:
    """The base's weights, the quantized ones in their format."""
    shape = work.shape
    if work.quantization == "none":
        return shape.parameters * work.stored
    dense = shape.parameters - shape.linear_weights
    return shape.linear_weights * format_bytes(work.quantization, work.stored) + dense * work.stored


def copies_bytes(work: Workload) -> float:
    """Weights that autocast has turned into the compute format, kept for the backward pass; fused LoRA keeps none."""
    if work.stored <= work.compute or work.quantization != "none" or "lora" in work.fused and work.rank:
        return 0.0
    return work.compute * work.shape.linear_weights


def block_bytes(work: Workload) -> dict[str, float]:
    """Bytes a token that one block keeps for its backward pass, by site."""
    shape, a = work.shape, work.compute
    full, fused = work.rank == 0, "layers" in work.fused
    h, q, k = shape.hidden, shape.query, shape.key
    attention = a * (2 * q + 2 * k) + FP32 * shape.heads
    if shape.family == "gpt_neox":
        # the values are a view of queries, keys and values, which are one tensor
        attention += a * (q + k)
    if work.masked:
        # keys and values are repeated for every query head, and each block keeps the mask in its own format
        attention += 2 * a * (q - k) + a * work.length
    norms = 2.0 * _norm(work, h, fused)
    if shape.head_norms:
        norms += (FP32 + (a if full else 0)) * (q + k) + FP32 * (shape.heads + shape.kv_heads)
    inputs = _inputs_when_all_trains(work, fused) if full else _inputs_of_adapters(work, fused)
    low = 0.0 if full else a * work.rank * len(work.targets)
    return {"norms": norms, "inputs": inputs, "attention": attention, "mlp": _mlp(work, fused), "low rank": low}


def _norm(work: Workload, width: int, fused: bool) -> float:
    if fused:
        return work.stored * width + FP32
    if not work.shape.rms:
        return FP32 * width + 2 * FP32
    return FP32 * width + FP32 + (work.stored * width if work.rank == 0 else 0)


def _mlp(work: Workload, fused: bool) -> float:
    a, f = work.compute, work.shape.ffn
    if not work.shape.gated:
        return a * f if work.shape.family != "gpt2" else 4 * a * f
    return 2 * a * f if fused else 3 * a * f


def _inputs_when_all_trains(work: Workload, fused: bool) -> float:
    """Inputs of the projections: two norms' outputs, the gated product; attention keeps its own output.

    Where autocast narrows, every product keeps a copy of its own, unless a fused norm has narrowed before.
    """
    shape, a, p = work.shape, work.compute, work.stored
    if p > a and not fused:
        return a * (3 * shape.hidden + 2 * shape.hidden) + a * shape.ffn
    return (a if fused else p) * 2 * shape.hidden + a * shape.ffn


def _inputs_of_adapters(work: Workload, fused: bool) -> float:
    """Inputs of the adapters' products. peft's layers each make a copy in the format of the product."""
    shape, a = work.shape, work.compute
    written_out = fused and "lora" in work.fused and not work.adapter_dropout
    copies = a < FP32 and work.quantization == "none"
    total, seen = 0.0, set()
    for name in work.targets:
        width, group = shape.linears[name].inside, SHARED_INPUT.get(name, name)
        own = written_out and (group in ("gate_proj", "down_proj") or not shape.head_norms)
        if work.adapter_dropout:
            total += width * (a + 1)
        elif own and group == "down_proj":
            continue
        elif own or not copies:
            total += a * width if group not in seen and group != "o_proj" else 0
            seen.add(group)
        else:
            total += a * width
    return total


# Linear maps that read one tensor; what attention puts out is kept by attention already.
SHARED_INPUT = {
    "k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj", "dense": "o_proj", "attn.c_proj": "o_proj",
}  # fmt: skip


def outside_bytes(work: Workload) -> float:
    """Bytes kept outside the blocks: the final norm, ids, rotary phases; less what adapters spare the first block."""
    shape = work.shape
    last = _norm(work, shape.hidden, False)
    spared = _norm(work, shape.hidden, "layers" in work.fused) if work.rank else 0.0
    phases = 0 if shape.positions else 2 * work.stored * shape.head_dim * work.length
    return work.tokens * (last - spared + 8 * (work.rank == 0)) + phases


def head_bytes(work: Workload) -> float:
    """What the loss makes at its peak: logits and log-probabilities, or one piece of them and ready gradients."""
    shape, a, n = work.shape, work.compute, work.tokens
    if "head" not in work.fused:
        # the logits, their shifted copy, in fp32 those that carry loss, and their log-probabilities
        return n * shape.vocabulary * (2 * a + 2 * FP32)
    piece = min(PIECE, n * shape.vocabulary * a)
    matrix, states = shape.vocabulary * shape.hidden, 2 * a * n * shape.hidden
    if work.stored > a:
        # the head in the compute format, here and for the one position that the model computes; a gradient, its sum
        return piece + (2 * a + (a + FP32) * (work.rank == 0)) * matrix + states
    weight = (2 * FP32 + work.stored) * matrix if work.rank == 0 else 0
    return max(piece, weight / 2) + weight / 2 + states


def backward_bytes(work: Workload) -> float:
    """Bytes that live while the last block's backward pass runs, beside what is kept."""
    shape, a = work.shape, work.compute
    grads = 4 if "layers" in work.fused else 3
    weight = a * shape.hidden * shape.ffn if work.quantization != "none" else 0
    return work.tokens * (grads * a * shape.ffn + 2 * work.stored * shape.hidden) + weight


def _last_gradients(work: Workload) -> float:
    """Gradients of first block and embedding, which do not exist yet when the first block's backward pass runs."""
    shape = work.shape
    if work.rank or work.accumulation > 1:
        return 0.0
    table = 0 if shape.tied else (shape.vocabulary + shape.positions) * shape.hidden
    return work.stored * (shape.block_parameters + table)


def _table_gradient(work: Workload) -> float:
    """The embedding's gradient while it is added to what is there: the head's when tied, that of an earlier pass."""
    shape = work.shape
    tables = 0 if work.rank else 2 * shape.tied + (work.accumulation > 1)
    return tables * work.stored * shape.vocabulary * shape.hidden


def _first_gradients(work: Workload) -> float:
    """Gradients of head and last block, which exist when the last block's backward pass is at its peak."""
    if work.rank:
        return 0.0
    shape = work.shape
    return work.stored * (shape.vocabulary * shape.hidden + shape.block_parameters)
