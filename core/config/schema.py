"""The recipe, typed: one dataclass for each block of the YAML, every field with its meaning.

The dataclasses are the only list of keys that exists: the loader reads types and choices from them, `graft check
--show` prints them, and the run folder stores them resolved. Mathematics lives in `train:`, time and memory in
`backend:`, and no key stands in two places. A trailing underscore (`with_`) stands for a key that Python reserves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def key(default: Any, doc: str, **checks: Any) -> Any:
    """A field with its meaning.

    `checks`: `least`, `most` (inclusive bounds), `above` (exclusive bound), `one_of` (the names that it may hold).
    """
    named = f"{doc}: {', '.join(checks['one_of'])}" if "one_of" in checks else doc
    metadata = {"doc": named, **checks}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class AdapterConfig:
    """An adapter; r to dora are keys of `lora` (Hu et al. 2021; Liu et al. 2024, DoRA; Kalajdzievski 2023, rsLoRA)."""

    kind: str = key("lora", "adapter method (graft ls adapters)")
    r: int = key(16, "rank", least=1)
    alpha: float | None = key(None, "scale numerator; null means 2r", above=0)
    dropout: float = key(0.0, "dropout on the adapter's input", least=0, most=0.95)
    targets: str | list[str] = key("all-linear", "'all-linear' or module name endings")
    rslora: bool = key(False, "scale by alpha/sqrt(r) instead of alpha/r")
    dora: bool = key(False, "decompose weights into magnitude and direction")
    modules_to_save: list[str] = key([], "modules trained in full and saved with the adapter")
    path: str | None = key(None, "folder of a saved adapter that is laid on frozen, below those that train")
    with_: dict[str, Any] = key({}, "options of a kind other than lora")

    @property
    def effective_alpha(self) -> float:
        return 2.0 * self.r if self.alpha is None else self.alpha


@dataclass
class ModelConfig:
    """The base model and the edits, quantization and adapters laid on it, in that order."""

    path: str | None = key(None, "hub id, local folder, run folder, or 'embedded'")
    preset: str | None = key(None, "architecture to build from scratch (graft ls presets)")
    tokenizer: str | None = key(
        None, "folder or hub id; 'bpe:8192' trains one on the training text; null takes the model's"
    )
    revision: str | None = key(None, "commit or tag of a hub model")
    trust_remote_code: bool = key(False, "run Python code that comes with a hub model")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = key(
        "auto", "dtype of loaded weights; auto keeps the checkpoint's on GPU, fp32 on CPU"
    )
    attention: Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2"] = key(
        "auto", "attention implementation"
    )
    quantization: str = key("none", "registry name of the base's number format")
    edits: list[dict] = key([], "ordered structural surgery, each {kind: …, its keys}")
    adapters: list[AdapterConfig] = key([], "ordered adapters; empty means full fine-tuning")


@dataclass
class SourceConfig:
    """One place that rows come from."""

    reader: str = key("jsonl", "the app's reader for this layout")
    path: str | None = key(None, "file, folder or common prefix; ${NAME} takes an environment variable")
    split: str | None = key(None, "part of the set, where the layout has parts")
    weight: float = key(1.0, "relative share when sources are interleaved", above=0)
    limit: int | None = key(None, "take at most this many rows", least=1)
    with_: dict[str, Any] = key({}, "the reader's own arguments, e.g. {src: en, tgt: de}")


@dataclass
class DataConfig:
    """What is trained and evaluated on, and how rows become tensors."""

    train: list[SourceConfig] = key([], "training sources, interleaved by weight")
    eval: list[SourceConfig] = key([], "held-out sources for the task metric")
    process: list[Any] = key([], "operators applied to the training rows, in order")
    max_length: int = key(512, "tokens a row or a packed row holds at most", least=8)
    packing: bool = key(True, "put several rows into one sequence, each seeing only itself")
    streaming: bool = key(False, "read while training instead of before")
    on_bad: Literal["raise", "skip"] = key("raise", "what a malformed row does; skip writes rejects.jsonl")


@dataclass
class BatchConfig:
    """The global batch: over all devices and accumulation steps."""

    size: int = key(64, "rows or tokens in one optimizer step", least=1)
    unit: Literal["rows", "tokens"] = key("rows", "what size counts")
    micro: int | Literal["auto"] = key("auto", "rows in one forward pass on one device", least=1)
    ramp: float = key(0.0, "the batch grows to its size over a share of the steps below 1, so many from 1 on", least=0)
    start: float = key(0.125, "share of the size that a ramp starts from", above=0, most=1)


@dataclass
class TrainConfig:
    """The mathematics of optimisation."""

    epochs: float = key(1, "passes over the training rows", above=0)
    max_steps: int | None = key(None, "stop after this many optimizer steps; overrides epochs", least=1)
    lr: float = key(2e-4, "peak learning rate", above=0)
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = key("cosine", "shape after warm-up")
    warmup: float = key(0.03, "share of the steps below 1, number of steps from 1 on", least=0)
    decay: float = key(0.2, "share of the run over which wsd falls at its end", above=0, most=1)
    optimizer: Literal["adamw"] = key("adamw", "optimizer")
    betas: list[float] = key([0.9, 0.999], "decay of Adam's two moments")
    weight_decay: float = key(0.0, "decoupled weight decay of matrices", least=0)
    clip: float = key(1.0, "largest global gradient norm; 0 turns clipping off", least=0)
    label_smoothing: float = key(0.0, "share of the target's mass spread over the vocabulary", least=0, most=0.9)
    z_loss: float = key(0.0, "weight of log² Z of the softmax, added to the loss of training; 1e-4 is usual", least=0)
    batch: BatchConfig = key(BatchConfig, "global batch")


@dataclass
class VerifyConfig:
    """A verifier of generated text, for methods that train on its verdicts."""

    name: str | None = key(None, "the app's verifier")
    sandbox: Literal["strict", "medium", "weak"] = key("strict", "least isolation accepted for untrusted code")
    workers: int | Literal["auto"] = key("auto", "verifications at the same time")
    timeout_s: float = key(30, "wall time of one verification in seconds", above=0)
    with_: dict[str, Any] = key({}, "the verifier's own arguments")


@dataclass
class EvalConfig:
    """The task metric: before, during and after training."""

    metrics: list[str] = key([], "metric names; empty takes the evaluator's default")
    select: str = key("loss", "what decides the best checkpoint: loss or a metric")
    every: float = key(0.1, "share of the run below 1, number of steps from 1 on, 0 never", least=0)
    max_seconds: float = key(60, "budget of one evaluation during training, in seconds", above=0)
    limit: int | None = key(None, "evaluate on at most this many rows", least=1)
    sampling: dict[str, Any] = key({}, "generation settings, e.g. {beams: 5, max_new_tokens: 128}")
    retention: bool | list[SourceConfig] = key(
        True, "loss on what the base knew: sources of such text; true where the base ships with its own"
    )
    with_: dict[str, Any] = key({}, "the evaluator's own arguments")


@dataclass
class KvConfig:
    """The key-value cache of a served model."""

    policy: Literal["full", "kv8", "kv4"] = key("full", "full keeps the model's dtype; kv8, kv4 round each token once")


@dataclass
class InferenceConfig:
    """How the trained model is served."""

    engine: str = key("hf", "generator: hf, replay, script or tiny")
    kv: KvConfig = key(KvConfig, "key-value cache")
    sampling: dict[str, Any] = key({}, "default generation settings")


@dataclass
class PrecisionConfig:
    """Number formats of parameters and of arithmetic."""

    params: Literal["auto", "fp32", "bf16"] = key(
        "auto", "trained parameters; auto is fp32, bf16 is trained on copies in fp32"
    )
    compute: Literal["auto", "fp32", "bf16"] = key("auto", "matrix products; auto is bf16 on GPU, fp32 on CPU")


@dataclass
class OffloadConfig:
    """What waits in host memory while it is not needed."""

    activations: Literal["auto", "none", "host"] = key(
        "auto", "inputs of blocks that are computed again; auto is host on a GPU"
    )


@dataclass
class BackendConfig:
    """Where the time and the memory go; nothing here changes what is learned."""

    strategy: Literal["auto", "single", "ddp"] = key("auto", "auto is ddp when launched on several devices")
    device: Literal["auto", "cpu", "cuda"] = key("auto", "device of the run")
    precision: PrecisionConfig = key(PrecisionConfig, "number formats")
    cross_entropy: Literal["auto", "fused", "whole"] = key(
        "auto", "fused never makes all logits at one time; auto is fused"
    )
    kernels: Literal["auto", "fused", "plain"] = key(
        "auto", "norms, rotary phases and gated products as Triton kernels; auto where there is a GPU"
    )
    lora: Literal["auto", "fused", "plain"] = key("auto", "LoRA's own forward and backward; auto where there is a GPU")
    packed_attention: Literal["auto", "varlen", "mask"] = key(
        "auto", "varlen attends document by document, mask over whole sequences; auto is varlen where the model can"
    )
    compile: Literal["none", "blocks"] = key("none", "compile each transformer block")
    activation_checkpoint: Literal["auto", "none", "selective", "full"] = key(
        "auto", "recompute activations in the backward pass; selective keeps attention and every second block"
    )
    optimizer_step: Literal["auto", "fused", "plain"] = key("auto", "one kernel for AdamW's step; auto is fused")
    async_input: bool = key(True, "batches travel to the GPU from pinned memory while it computes")
    offload: OffloadConfig = key(OffloadConfig, "what moves to host memory")
    workers: int = key(0, "processes that prepare batches", least=0)


@dataclass
class CheckpointConfig:
    """What survives a killed run."""

    every: int = key(500, "optimizer steps between checkpoints", least=1)
    keep: int = key(3, "newest checkpoints kept; the best is kept besides", least=1)
    mode: Literal["async", "sync"] = key(
        "async", "async copies the state and writes it beside the next steps; with sync training waits for the disk"
    )


@dataclass
class StageConfig:
    """One stage of a chain; blocks given here override the recipe's, key by key (lists replace)."""

    name: str = key("", "folder name of the stage")
    method: str = key("", "registered training method")
    with_: dict[str, Any] = key({}, "the method's own options")
    init: Literal["previous", "base"] = key("previous", "weights the stage starts from")
    data: dict[str, Any] = key({}, "overrides of data")
    train: dict[str, Any] = key({}, "overrides of train")
    model: dict[str, Any] = key({}, "overrides of model")
    verify: dict[str, Any] = key({}, "overrides of verify")


@dataclass
class Recipe:
    """A whole run. The smallest one gives app, model.path, data.train and method."""

    version: Literal[1] = key(1, "version of this format")
    app: str = key("", "which app's readers, pipeline and evaluator to use")
    seed: int = key(42, "seed of everything random", least=0)
    output: str = key("runs/{recipe}/{seed}", "run folder; {recipe}, {seed} and {app} are filled in")
    model: ModelConfig = key(ModelConfig, "the model")
    data: DataConfig = key(DataConfig, "the data")
    method: str | None = key(None, "short form of a chain of one stage")
    with_: dict[str, Any] = key({}, "options of that method")
    stages: list[StageConfig] = key([], "the chain of stages")
    train: TrainConfig = key(TrainConfig, "optimisation")
    verify: VerifyConfig = key(VerifyConfig, "verifier")
    eval: EvalConfig = key(EvalConfig, "evaluation")
    inference: InferenceConfig = key(InferenceConfig, "serving")
    backend: BackendConfig = key(BackendConfig, "time and memory")
    checkpoint: CheckpointConfig = key(CheckpointConfig, "checkpoints")
    trackers: list[str] = key([], "experiment trackers besides metrics.jsonl")

    def __post_init__(self) -> None:
        self.source: Any = None

    def place_of(self, key: str) -> str:
        """File and line of a dotted key; the key alone where the recipe was never written."""
        parts = (int(part) if part.isdigit() else part for part in key.split("."))
        return self.source.places.of(tuple(parts)) if self.source else key

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the YAML's key names."""
        return to_plain(self)


def to_plain(value: Any) -> Any:
    """A dataclass as the nested dictionary that the YAML would hold."""
    if hasattr(value, "__dataclass_fields__"):
        return {name.rstrip("_"): to_plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    return value
