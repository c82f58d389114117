"""How a matrix is stored and multiplied, as plain data: one choice on each axis.

A `QuantSpec` names a grid, what shares a scale, how codes are found, what stays outside the low-bit matrix and how
activations and the key-value cache are held. It is written "awq:int4:g128" in a recipe, and travels as JSON in a saved
model's config. Nothing here imports torch, so a recipe is checked without it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from core.errors import ConfigError, nearest

GRIDS = ("int", "balanced", "bipolar", "ternary", "nf4", "bitmod", "learned")
SCALES = ("fp16", "bf16", "fp32", "int8", "double")
ACTIVATIONS = ("none", "int8", "split", "mixed4", "int4", "bipolar8")
AUTO_GROUPS = (128, 64, 32)
ROW, TENSOR = 0, -1


@dataclass(frozen=True)
class QuantSpec:
    """One row of the composition table, its open choices made.

    Args:
        preset: the row's name.
        grid: what values a code can mean. bits: width of a code, 1 to 8.
        symmetric: no zero point; for affine grids.
        group: inputs of a row that share a scale; 0 is the whole row, -1 the whole matrix.
        strict_group: the group was asked for, so it must divide; else the largest of 128, 64 and 32 that does is taken.
        scale: how a scale is stored; "int8" is an integer times a second level for each row, "double" is quantized
            again in blocks of 256 (Dettmers et al. 2023).
        transforms: function-preserving rewrites before rounding, in order.
        solver: "module:function" that finds codes. objective: what the search of transforms minimises.
        outliers, sensitive: shares of a matrix kept in full precision by size and by second derivative.
        act: how inputs are rounded when the layer runs. kv: bits of the key-value cache the preset is published with.
        trained: the codes are found in training; after it the preset only packs.
    """

    preset: str
    grid: str = "int"
    bits: int = 4
    symmetric: bool = False
    group: int = 128
    strict_group: bool = False
    scale: str = "fp16"
    transforms: tuple[str, ...] = ()
    solver: str = "core.quantization.solvers.rtn:solve"
    objective: str = "weights"
    outliers: float = 0.0
    sensitive: float = 0.0
    act: str = "none"
    kv: int = 16
    trained: bool = False

    def __post_init__(self) -> None:
        widths = {"ternary": (2, 2), "nf4": (4, 4), "bitmod": (3, 4), "balanced": (3, 8)}
        low, high = widths.get(self.grid, (1 if self.grid in ("bipolar", "learned") else 2, 8))
        if self.grid not in GRIDS:
            raise ConfigError(f"unknown grid '{self.grid}'", hint=f"{nearest(self.grid, GRIDS)} known: {GRIDS}")
        if not low <= self.bits <= high:
            width = f"{low} bits" if low == high else f"{low} to {high} bits"
            raise ConfigError(f"grid '{self.grid}' has {width}, not {self.bits}", where=self.preset)
        if self.group < TENSOR or (self.group > 0 and self.group % 8):
            raise ConfigError(
                f"groups of {self.group} inputs cannot be packed",
                where=self.preset,
                hint="a multiple of 8, row or tensor",
            )
        if self.scale not in SCALES or self.act not in ACTIVATIONS:
            raise ConfigError(f"scale '{self.scale}' or activations '{self.act}' are unknown", where=self.preset)

    @property
    def codebook(self) -> bool:
        """Whether codes are looked up in a fixed table."""
        return self.grid in ("nf4", "bitmod")

    @property
    def has_zero(self) -> bool:
        """Whether a zero point is stored beside every scale."""
        return self.grid in ("int", "balanced") and not self.symmetric

    @property
    def needs_calibration(self) -> bool:
        """Whether codes depend on data."""
        return self.objective not in ("weights", "training")

    @property
    def nominal_bits(self) -> float:
        """Bits a weight takes, scales and zeros in, in a row of 4,096 inputs; values beside the matrix count 48."""
        if self.grid == "learned":
            overhead = 0.0 if self.group == TENSOR else 16 * 2**self.bits / 4096
        else:
            scale = {"fp16": 16, "bf16": 16, "fp32": 32, "int8": 8, "double": 8.125}[self.scale]
            selector = 8 if self.grid == "bitmod" else 0
            overhead = (scale + 8 * self.has_zero + selector) / (self.group if self.group > 0 else 4096)
        return self.bits + overhead + 48 * (self.outliers + self.sensitive)

    def groups(self, in_features: int) -> int:
        """Scales in one row."""
        return 1 if self.group in (ROW, TENSOR) else in_features // self.group

    def fitted(self, in_features: int, name: str = "") -> QuantSpec:
        """This spec for a layer of so many inputs: an automatic group is settled.

        Raises:
            ConfigError: a group that was asked for does not divide the inputs; the ones that would are listed.
        """
        if self.group <= 0 or (in_features % self.group == 0 and in_features >= self.group):
            return self
        working = [g for g in range(8, in_features + 1, 8) if in_features % g == 0]
        chosen = next((g for g in AUTO_GROUPS if g < self.group and g in working), None)
        if self.strict_group or chosen is None:
            raise ConfigError(
                f"{in_features} inputs do not divide into groups of {self.group}",
                where=name or self.preset,
                hint=f"groups that would work: {', '.join(map(str, working)) or 'none'}, or row",
            )
        return replace(self, group=chosen)

    def to_dict(self) -> dict[str, Any]:
        """JSON data; `from_dict` is the inverse."""
        return {**asdict(self), "transforms": list(self.transforms)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QuantSpec:
        """The inverse of `to_dict`. Raises `ConfigError` naming a key that this version does not know."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ConfigError(
                f"unknown quantization key '{unknown[0]}'",
                where="quantization_config.spec",
                hint=nearest(unknown[0], known) or "the model was written by a newer version",
            )
        return cls(**{**data, "transforms": tuple(data.get("transforms", ()))})

    def __str__(self) -> str:
        group = {ROW: "row", TENSOR: "tensor"}.get(self.group, f"g{self.group}")
        return f"{self.preset}:{self.bits}:{group}"


def parse(text: str | QuantSpec) -> QuantSpec:
    """ "awq:int4:g128" as a spec: a preset's name, then settings in any order.

    Settings: bits ("4", "int4", "w4"), group ("g64", "row", "tensor"), "sym" or "asym", a scale format ("bf16",
    "int8-scale"), "dense" for no residual, "a8" or "a16" for activations.

    Raises:
        ConfigError: an unknown preset or setting, with the nearest.
    """
    if isinstance(text, QuantSpec):
        return text
    from core.quantization.presets import PRESETS

    name, *settings = str(text).split(":")
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset '{name}'",
            where="quantization",
            hint=" ".join(filter(None, [nearest(name, PRESETS), f"known: {', '.join(PRESETS)}"])),
        )
    changes: dict[str, Any] = {}
    for setting in settings:
        changes.update(_setting(setting, text))
    if name == "abq" and changes.get("bits") == 2:
        # two bits balanced around zero are five levels in three planes (Zeng et al. 2024)
        changes.update(bits=3, grid="balanced")
    return replace(PRESETS[name], **changes)


def _setting(word: str, text: str) -> dict[str, Any]:
    digits = word.removeprefix("int").removeprefix("w")
    if digits.isdigit():
        return {"bits": int(digits)}
    if word.startswith("g") and word[1:].isdigit() and int(word[1:]):
        return {"group": int(word[1:]), "strict_group": True}
    if word.removesuffix("-scale") in SCALES:
        return {"scale": word.removesuffix("-scale")}
    from core.quantization.presets import PRESETS

    known: dict[str, dict[str, Any]] = {
        "row": {"group": ROW},
        "tensor": {"group": TENSOR},
        "sym": {"symmetric": True},
        "asym": {"symmetric": False},
        "dense": {"outliers": 0.0, "sensitive": 0.0},
        "a8": {"act": "int8"},
        "a16": {"act": "none"},
        "bitmod": {"grid": "bitmod", "symmetric": True, "solver": PRESETS["bitmod"].solver},
        "kv8": {"kv": 8},
        "kv4": {"kv": 4},
    }
    if word not in known:
        hint = " ".join(filter(None, [nearest(word, known), f"settings: 4, g128, {', '.join(known)}"]))
        raise ConfigError(f"unknown setting '{word}'", where=f"quantization '{text}'", hint=hint)
    return known[word]
