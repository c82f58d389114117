"""Edits of a model's block graph that can be saved and loaded: an edited model is its base and an ordered list of ops.

An op changes shapes or wiring (`structure`, also on the meta device) and is recorded in the config as plain data;
whoever applied it fills the new weights. A saved edited model is `config.json` of type "graft" with the base's config
and the ops, so that a plain loader fails loudly instead of dropping weights, and loading is the base built empty, the
ops replayed, the tensors read. In memory `config.model_type` stays the base's: generation, peft and chat templates see
the model they know.

Surgery owns the slots of the key-value cache. A cache has one slot for each of `config.num_hidden_layers`, and every
attention names its own: after every op the attentions that exist are renumbered in the order in which they run.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.config.files import write_json
from core.config.registry import Registry
from core.errors import CheckpointError, ConfigError, UnsupportedError

VERSION = 1
OPS: Registry[str] = Registry("surgery op")

for _kind, _place in {
    "drop_layers": "core.models.blocks.layers:drop_layers",
    "insert_block": "core.models.blocks.layers:insert_block",
    "sublayer": "core.models.blocks.sublayer:sublayer",
    "slice_block": "core.models.blocks.slices:slice_block",
    "slice_hidden": "core.models.blocks.slices:slice_hidden",
    "linear_form": "core.models.blocks.linears:linear_form",
    "sidecar": "core.models.blocks.sidecar:sidecar",
    "ladder": "core.models.blocks.ladder:ladder",
    "skip_ffn": "core.models.blocks.skip:skip_ffn",
    "learngene": "core.models.blocks.expanded:learngene",
    "deepnorm": "core.models.blocks.deepnorm:deepnorm",
}.items():
    OPS.register(_kind)(_place)

PLAIN_OPS = {"drop_layers", "insert_block", "slice_block", "slice_hidden"}


def structure_of(kind: str) -> Callable[..., None]:
    """The function `(model, **args)` that checks an op's arguments and changes the structure."""
    module, _, name = OPS.get(kind).partition(":")
    return getattr(importlib.import_module(module), name)


def apply(model: Any, kind: str, **args: Any) -> Any:
    """Change the structure of `model` in place by one op and record it. Returns the model.

    New parts hold no values yet, except where an op says so (a copied block).

    Raises:
        ConfigError, UnsupportedError: arguments or families that the op cannot take; the model is as before.
    """
    structure = structure_of(kind)
    json.dumps(args)
    before = _before(model)
    structure(model, **args)
    _record(model, kind, args, before)
    return model


def replace_linear(model: Any, path: str, form: Any) -> Any:
    """Put a `LinearForm` with its values in the place of the linear map at `path`, and record it."""
    before = _before(model)
    structure_of("linear_form")(model, path=path, form=form.kind, spec=form.describe(), values=form)
    _record(model, "linear_form", {"path": path, "form": form.kind, "spec": form.describe()}, before)
    return model


def forget(model: Any, ops: list[dict[str, Any]]) -> None:
    """Strike out ops whose effect the caller has undone; a model without any is of its plain class again."""
    left = [op for op in ops_of(model) if op not in ops]
    if left:
        model.config.graft["ops"] = left
    elif hasattr(model.config, "graft"):
        model.__class__ = plain_class(model)
        del model.config.graft


def ops_of(model: Any) -> list[dict[str, Any]]:
    """The recorded ops, `{kind: …, its arguments}`, in order; empty for a plain model."""
    return list((getattr(model.config, "graft", None) or {}).get("ops", ()))


def _record(model: Any, kind: str, args: dict[str, Any], before: dict[str, Any]) -> None:
    graft = getattr(model.config, "graft", None) or {"version": VERSION, "ops": [], "originals": before}
    graft["ops"].append({"kind": kind, **args})
    model.config.graft = graft
    model.__class__ = edited_class(type(model))
    number_cache_slots(model)


def _before(model: Any) -> dict[str, Any]:
    """The values to keep of a model that can be edited. Raises `UnsupportedError` for one that cannot."""
    if len(set(getattr(model.config, "layer_types", None) or [])) > 1:
        raise UnsupportedError("blocks with sliding and with full attention in one model", where="config.layer_types")
    if hasattr(model, "peft_config"):
        raise UnsupportedError("the model has adapters", hint="edit the base first, or merge the adapters")
    return _changeable(model.config)


def _changeable(config: Any) -> dict[str, Any]:
    """The config values that ops may change, as the base has them."""
    names = ("num_hidden_layers", "layer_types", "hidden_size", "intermediate_size", "head_dim")
    names += ("num_attention_heads", "num_key_value_heads")
    found = {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}
    return json.loads(json.dumps(found))


def number_cache_slots(model: Any) -> None:
    """Give every attention that exists a slot of its own, 0, 1, … in execution order, and the cache enough of them.

    The config's number of layers also bounds how many blocks the base runs, so it is the larger of both counts.
    """
    from core.models.topology import ModelTopology

    topology = ModelTopology.of(model)
    attentions = [block.attn for block in topology.blocks if hasattr(block.attn, "layer_idx")]
    for slot, attention in enumerate(attentions):
        attention.layer_idx = slot
    count = max(len(attentions), len(topology.stack))
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[0]] * count


# ---- the class of an edited model ----------------------------------------------------------------------------------


class Edited:
    """What an edited model does beyond its base class: it replays its ops when it is built, and saves them."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        # a config in memory counts the blocks and slots of the edited model, the ops start from the base's
        for name, value in config.graft["originals"].items():
            setattr(config, name, value)
        super().__init__(config, *args, **kwargs)
        for op in config.graft["ops"]:
            arguments = {name: value for name, value in op.items() if name != "kind"}
            structure_of(op["kind"])(self, **arguments)
            number_cache_slots(self)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As the base, with a config that names the ops."""
        done = super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_config(self.config, Path(save_directory))
        return done


@functools.cache
def edited_class(base: type) -> type:
    """`base` with `Edited` before it; an edited class as it is. The name stays: libraries look at it."""
    if issubclass(base, Edited):
        return base
    return type(base.__name__, (Edited, base), {"__module__": base.__module__, "__doc__": base.__doc__})


def plain_class(model: Any) -> type:
    """The class of the base."""
    return next(cls for cls in type(model).__mro__ if not issubclass(cls, Edited))


def write_config(config: Any, folder: Path) -> None:
    """config.json of an edited model: type "graft", the base's config, the ops."""
    written = config.to_dict()
    graft = written.pop("graft")
    written.pop("_name_or_path", None)
    base = {**written, **graft["originals"]}
    base["architectures"] = config.architectures
    top = {"model_type": "graft", "architectures": ["GraftModel"], "dtype": base.get("dtype")}
    write_json(folder / "config.json", {**top, "base_config": base, "graft": {"version": VERSION, "ops": graft["ops"]}})


def export_hf(model: Any, folder: str | Path) -> None:
    """Save an edited model as a plain one that any loader opens.

    Raises:
        UnsupportedError: an op that the base's config cannot express, or blocks of different shapes.
    """
    import copy

    import torch

    strange = sorted({op["kind"] for op in ops_of(model)} - PLAIN_OPS)
    if strange:
        raise UnsupportedError(
            f"a plain {model.config.model_type} cannot hold: {', '.join(strange)}",
            hint="save_pretrained keeps them; graft loads that folder",
        )
    config = copy.deepcopy(model.config)
    if hasattr(config, "graft"):
        del config.graft
    config.num_hidden_layers = len(_stack(model))
    _measure(model, config)
    with torch.device("meta"):
        empty = plain_class(model)(config)
    wanted = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    state = model.state_dict()
    different = [
        name for name in wanted.keys() | state.keys() if name not in state or wanted.get(name) != state[name].shape
    ]
    if different:
        raise UnsupportedError(
            "the blocks differ from each other, a plain model has one shape for all", where=sorted(different)[0]
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    shell = plain_class(model)
    edited, own = model.__class__, model.config
    try:
        model.__class__, model.config = shell, config
        model.save_pretrained(folder)
    finally:
        model.__class__, model.config = edited, own


def _measure(model: Any, config: Any) -> None:
    """Write the first block's sizes into a plain config."""
    from core.models.linear import features
    from core.models.topology import ModelTopology

    block = ModelTopology.of(model).blocks[0]
    if block.gate is not None:
        config.intermediate_size = features(block.up)[1]
        config.hidden_size = features(block.up)[0]
        config.head_dim = block.head_dim_qk
        config.num_attention_heads = features(block.q)[1] // block.head_dim_qk
        config.num_key_value_heads = features(block.k)[1] // block.head_dim_qk


def _stack(model: Any) -> Any:
    from core.models.topology import ModelTopology

    return ModelTopology.of(model).stack


# ---- loading -------------------------------------------------------------------------------------------------------


@functools.cache
def register() -> type:
    """Make transformers' Auto classes open edited models. Returns the config class."""
    import transformers
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
        PreTrainedConfig,
        PreTrainedModel,
    )

    class GraftConfig(PreTrainedConfig):
        """The config of an edited model: `base_config` and the ops in `graft`."""

        model_type = "graft"

        def __init__(self, base_config: Any = None, graft: Any = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.base_config, self.graft = base_config or {}, graft or {}

    class GraftModel(PreTrainedModel):
        """Opens an edited model; the object that comes back is of the base's class."""

        config_class = GraftConfig

        @classmethod
        def from_pretrained(cls, place: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
            base, class_ = _base_of(config or GraftConfig.from_pretrained(place), transformers, str(place))
            return class_.from_pretrained(place, *args, config=base, **kwargs)

        @classmethod
        def _from_config(cls, config: Any, **kwargs: Any) -> Any:
            base, class_ = _base_of(config, transformers, "config")
            return class_._from_config(base, **kwargs)

    AutoConfig.register("graft", GraftConfig)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM):
        auto.register(GraftConfig, GraftModel)
    return GraftConfig


def _base_of(config: Any, transformers: Any, place: str) -> tuple[Any, type]:
    """The base's config with the ops in it, and the edited class."""
    if config.graft.get("version") != VERSION:
        raise CheckpointError(
            f"an edited model of format {config.graft.get('version')}, this graft reads {VERSION}", where=place
        )
    base = dict(config.base_config)
    name = (base.get("architectures") or ["none"])[0]
    class_ = getattr(transformers, name, None)
    if not (isinstance(class_, type) and issubclass(class_, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"the base of the edited model is of class '{name}', which transformers lacks", where=place
        )
    made = transformers.CONFIG_MAPPING[base.pop("model_type")].from_dict(base)
    made.graft = {"version": VERSION, "ops": list(config.graft["ops"]), "originals": _changeable(made)}
    return made, edited_class(class_)


def layer_index(model: Any, layer: int, op: str) -> int:
    """`layer` when the stack has it. Raises `ConfigError` otherwise."""
    count = len(_stack(model))
    if not isinstance(layer, int) or not 0 <= layer < count:
        raise ConfigError(f"no block {layer}", where=op, hint=f"the model has blocks 0 to {count - 1}")
    return layer
