"""A linear map whose weight is codes: what is stored, how it runs, how it travels.

Codes lie in bit planes, an int32 parameter that does not train, so that sharding and device moves see it; scales and
what else decodes them are buffers that keep their own dtypes whatever the model is cast to. The layer knows its spec
and nothing of how codes were found. Its gradient reaches the input only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from core.errors import CheckpointError, ConfigError, MergeError, UnsupportedError
from core.models.linear import dense_weight, features
from core.quantization import scales
from core.quantization.kernels.reference import STATE, Form, decode
from core.quantization.packing import WORD, pack, unpack
from core.quantization.solvers.encoded import Encoded
from core.quantization.solvers.ste import normalised
from core.quantization.spec import QuantSpec

_WEIGHTS = (torch.float32, torch.float16, torch.bfloat16)


class QuantizedLinear(nn.Module):
    """y (…, out) = x (…, in) Ŵᵀ + b with Ŵ decoded from codes.

    Args:
        quant: the spec, its group settled for these inputs.
        extra: what the data decided: `norm`, `in_scale` and `perm` (present or not), `nnz` values kept beside the
            matrix, `high_blocks` of FMPQ. It is saved with the model, so that the layer can be rebuilt empty.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        quant: QuantSpec,
        bias: bool = False,
        *,
        extra: dict[str, Any] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.quant = quant.fitted(in_features)
        self.extra = dict(extra or {})
        self.kernel = "reference"
        self._layout: tuple[torch.Tensor, ...] = ()
        words = -(-in_features // WORD)
        planes = torch.empty(out_features, self.quant.bits, words, dtype=torch.int32, device=device)
        self.planes = nn.Parameter(planes, requires_grad=False)
        for name, (shape, kind) in _buffers(self.quant, in_features, out_features, self.extra).items():
            self.register_buffer(name, torch.empty(shape, dtype=kind, device=device))
        for name in ("in_scale", "perm"):
            if name not in self._buffers:
                self.register_buffer(name, None)
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device), False) if bias else None
        held = [name for name in STATE if name == "planes" or name in self._buffers]
        # what the tensors of `state()` mean; it never changes
        self.form = Form(self.quant, in_features, held, self.extra.get("high_blocks", 0))

    # ---- making ------------------------------------------------------------------------------------------------

    @classmethod
    def from_encoded(
        cls,
        encoded: Encoded,
        quant: QuantSpec,
        bias: torch.Tensor | None = None,
        *,
        in_scale: torch.Tensor | None = None,
        perm: torch.Tensor | None = None,
        high_blocks: int = 0,
        norm: bool = False,
    ) -> QuantizedLinear:
        """The layer of a solver's result.

        `norm` divides the input by its root mean square, `in_scale` (K,) multiplies it, `perm` (K,) reorders it.
        """
        rows, inputs = encoded.codes.shape
        extra: dict[str, Any] = {}
        sparse = None if encoded.sparse is None else encoded.sparse.float().to_sparse_csr()
        if sparse is not None:
            extra["nnz"] = sparse.values().numel()
        if in_scale is not None:
            extra["in_scale"] = True
        if perm is not None:
            extra["perm"] = True
        if high_blocks:
            extra["high_blocks"] = high_blocks
        if norm:
            extra["norm"] = True
        device = encoded.codes.device
        made = cls(
            inputs, rows, quant, bias is not None, extra=extra, device=device,
            dtype=None if bias is None else bias.dtype,
        )  # fmt: skip
        tensors = {"planes": pack(encoded.codes, quant.bits), **encoded.params}
        if sparse is not None:
            tensors |= {"sparse_crow": sparse.crow_indices(), "sparse_col": sparse.col_indices()}
            tensors["sparse_val"] = sparse.values()
        given = {"in_scale": in_scale, "perm": perm, "bias": bias}
        tensors |= {name: tensor for name, tensor in given.items() if tensor is not None}
        with torch.no_grad():
            for name, tensor in tensors.items():
                getattr(made, name).copy_(tensor.view_as(getattr(made, name)))
        return made

    @classmethod
    def from_linear(cls, linear: Any, spec: QuantSpec, stats: Any = None, name: str = "") -> QuantizedLinear:
        """Quantize any linear map with the spec's own solver.

        Raises:
            UnsupportedError: already quantized, or a dtype that is no float of up to 32 bits.
        """
        from core.quantization.solvers import solver_of

        quant = checked(linear, spec, name)
        weight = dense_weight(linear).detach()
        encoded = solver_of(quant)(weight, quant, stats)
        return cls.from_encoded(encoded, quant, getattr(linear, "bias", None))

    # ---- running -----------------------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from core.quantization.kernels.registry import run

        if self.extra.get("norm"):
            x = normalised(x)
        if self.in_scale is not None:
            x = x * self.in_scale.to(x.dtype)
        if self.perm is not None:
            x = x.index_select(-1, self.perm)
        y = run(self, x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """The packed planes, int32: peft asks a layer's weight for its device. The matrix itself is `dense_weight`."""
        return self.planes

    def state(self) -> list[torch.Tensor]:
        """The tensors that decode the matrix, in the order of `form.names`."""
        return [self.canonical_planes() if name == "planes" else getattr(self, name) for name in self.form.names]

    def canonical_planes(self) -> torch.Tensor:
        """The bit planes, rebuilt where a kernel's own layout took their place."""
        if not self._layout:
            return self.planes
        from core.quantization.kernels.registry import restore

        return restore(self)

    def prepare(self, kernel: str = "auto") -> QuantizedLinear:
        """Bring the codes into a kernel's own layout, in place of the planes; saving gives planes again.

        Raises:
            BackendUnavailable: the kernel that was asked for cannot run here, with its reason.
        """
        from core.quantization.kernels.registry import prepare

        return prepare(self, kernel)

    # ---- the weight as numbers ---------------------------------------------------------------------------------

    def codes(self) -> torch.Tensor:
        """uint8 (out, in), in the stored order of inputs."""
        return unpack(self.canonical_planes(), self.in_features)

    def dense_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Ŵ (out, in) as a dense layer on the same input would hold it; fp32 unless `dtype` is given."""
        weight = decode(self.state(), self.form)
        if self.perm is not None:
            weight = torch.empty_like(weight).index_copy_(1, self.perm, weight)
        if self.in_scale is not None:
            weight = weight * self.in_scale.float()
        return weight if dtype is None else weight.to(dtype)

    dequantize = dense_weight

    def set_dense_weight(self, weight: torch.Tensor) -> None:
        """Refused, because the codes cannot hold an arbitrary weight: see `requantize`."""
        raise MergeError(
            f"a {self.spec} map cannot take an arbitrary weight",
            hint="requantize(weight) rounds again with the same spec; merging into bf16 keeps the sum exact",
        )

    def requantize(self, weight: torch.Tensor) -> float:
        """Round W (out, in) again with this layer's grid and groups. Returns the relative error of the rounding.

        Ranges are taken anew; a learned grid keeps its levels, and values beside the matrix keep their places.
        """
        from core.quantization.solvers.again import solve_again

        if tuple(weight.shape) != (self.out_features, self.in_features):
            raise MergeError(f"a weight of shape {tuple(weight.shape)} for {(self.out_features, self.in_features)}")
        inner = weight.detach().float()
        if self.in_scale is not None:
            inner = inner / self.in_scale.float()
        if self.perm is not None:
            inner = inner.index_select(1, self.perm)
        encoded = solve_again(inner, self)
        with torch.no_grad():
            kernel, self._layout = self.kernel, ()
            self.planes = nn.Parameter(pack(encoded.codes, self.quant.bits), requires_grad=False)
            for name, tensor in encoded.params.items():
                getattr(self, name).copy_(tensor)
            if encoded.sparse is not None:
                rows = torch.repeat_interleave(
                    torch.arange(self.out_features, device=inner.device), self.sparse_crow.diff()
                )
                self.sparse_val.copy_(encoded.sparse[rows, self.sparse_col.long()])
            if kernel != "reference":
                self.prepare(kernel)
        error = (self.dense_weight() - weight.float()).norm() / weight.float().norm().clamp_min(1e-12)
        return float(error)

    # ---- size and name -----------------------------------------------------------------------------------------

    @property
    def spec(self) -> str:
        return str(self.quant)

    def storage_bytes(self) -> int:
        """Bytes of everything but the bias; a kernel's own layout counts in place of the planes."""
        held = [t for n, t in [*self._parameters.items(), *self._buffers.items()] if t is not None and n != "bias"]
        return sum(t.numel() * t.element_size() for t in [*held, *self._layout])

    @property
    def bits_per_weight(self) -> float:
        """Bits of all that decodes the matrix, for each of its entries."""
        return 8 * self.storage_bytes() / (self.in_features * self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, {self.spec}, kernel={self.kernel}"

    # ---- moving and saving -------------------------------------------------------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        def placed(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            if tensor is self.bias or moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device) if not tensor.is_meta else torch.empty_like(tensor, device=moved.device)

        if self._layout and fn(self.planes).device.type != self.planes.device.type:
            # a kernel of one kind of device has nothing to do on another
            self.prepare("reference")
        result = super()._apply(placed, recurse)
        if self._layout:
            self._layout = tuple(placed(tensor) for tensor in self._layout)
        return result

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._layout:
            destination[prefix + "planes"] = self.canonical_planes()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if self._layout:
            self.prepare("reference")
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def lora_layer(cls) -> type:
        """The layer that peft puts around this one."""
        from core.quantization.peft import QuantLoraLinear

        return QuantLoraLinear


def checked(linear: Any, spec: QuantSpec, name: str = "") -> QuantSpec:
    """The spec for this layer, or an error that names the layer and what to do."""
    if isinstance(linear, QuantizedLinear) or type(linear).__name__ in ("Linear4bit", "Linear8bitLt"):
        raise UnsupportedError("the layer is quantized already", where=name or None, hint="start from the dense model")
    weight = getattr(linear, "weight", None)
    dtype = dense_weight(linear).dtype if weight is None else weight.dtype
    if dtype not in _WEIGHTS:
        raise UnsupportedError(
            f"a weight of {dtype} cannot be quantized", where=name or None, hint="cast it to fp32, bf16 or fp16"
        )
    inputs, outputs = features(linear)
    if not inputs or not outputs:
        raise ConfigError(f"a matrix of {outputs} × {inputs} has nothing to quantize", where=name or None)
    return spec.fitted(inputs, name)


def check_version(version: Any) -> None:
    """Refuse a saved format that is newer than this code."""
    if version != 1:
        raise CheckpointError(
            f"the model was saved in quantization format {version}, this version reads 1", hint="update graft"
        )


def _buffers(spec: QuantSpec, inputs: int, outputs: int, extra: dict[str, Any]) -> dict[str, tuple[tuple, Any]]:
    """Name → (shape, dtype) of every buffer of a layer."""
    rows = 1 if spec.group == -1 else outputs
    groups = spec.groups(inputs)
    made: dict[str, tuple[tuple, Any]] = {}
    if spec.grid == "learned":
        made["levels"] = ((rows, 2**spec.bits), torch.float16)
    elif spec.scale in scales.FLOATS:
        made["scale"] = ((rows, groups), scales.FLOATS[spec.scale])
    else:
        made["scale"] = ((rows, groups), torch.uint8)
        double = spec.scale == "double"
        made["scale2"] = ((-(-rows * groups // scales.DOUBLE_BLOCK),) if double else (rows, 1), torch.float32)
        if double:
            made["scale_offset"] = ((1,), torch.float32)
    if spec.has_zero and spec.grid != "learned":
        made["zero"] = ((rows, groups), torch.uint8)
    if spec.grid == "bitmod":
        made["selector"] = ((rows, groups), torch.uint8)
    if nnz := extra.get("nnz"):
        made["sparse_crow"] = ((outputs + 1,), torch.int32)
        made["sparse_col"] = ((nnz,), torch.int32)
        made["sparse_val"] = ((nnz,), torch.float16)
    if extra.get("in_scale"):
        made["in_scale"] = ((inputs,), torch.float32)
    if extra.get("perm"):
        made["perm"] = ((inputs,), torch.int64)
    return made
