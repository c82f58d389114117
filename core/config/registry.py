"""Names that recipes use, and what they stand for.

A `Registry` maps a name to an object and answers an unknown name with the nearest known one. `METHODS` holds the
training methods, each with the dataclass that types its `with:` block; `ADAPTERS` and `EDITS` hold what can be laid
on a model, `QUANTIZERS` the number formats of its weights; `get_app` finds an app by the convention that app `x` is
the package `apps.x` with an `APP` in it. Nothing here imports a library: apps and parts are named as text and imported
when a recipe asks for them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from core.config.limits import Limit
from core.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from name to object whose misses are helpful.

    Args:
        kind: the word used in messages, e.g. "reader".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form: `@READERS.register("moses")`."""

        def add(entry: T) -> T:
            if self._entries.get(name, entry) is not entry and not _same_source(self._entries[name], entry):
                raise ConfigError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """The entry, or a `ConfigError` with the nearest name."""
        if name not in self._entries:
            known = ", ".join(self.names()) or "none"
            raise ConfigError(
                f"unknown {self.kind} '{name}'",
                hint=" ".join(filter(None, [nearest(name, self.names()), f"known: {known}"])),
            )
        return self._entries[name]

    def names(self) -> list[str]:
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


def _same_source(first: Any, second: Any) -> bool:
    """True when a module was reloaded: same qualified name, new object."""
    sources = [getattr(entry, "build", entry) for entry in (first, second)]
    where = [(getattr(s, "__module__", None), getattr(s, "__qualname__", id(s))) for s in sources]
    return where[0] == where[1]


@dataclass(frozen=True)
class Method:
    """A training method: `build(StageContext) -> Stage`, and the dataclass that types its `with:` block.

    Args:
        tiny: preset of the model that stands in for the recipe's in its smoke form.
        limits: keys of a recipe that it cannot act on.
        streams: whether it can learn from rows that are read while it trains.
        look: `(first examples, recipe, options)` raises where they, or a file that options name, are nothing to learn
            from; called without torch, before anything is loaded.
    """

    name: str
    config: type
    build: Callable[[Any], Any]
    tiny: str = "tiny"
    limits: tuple[Limit, ...] = ()
    look: Callable[[Sequence[Any], Any, Any], None] | None = None
    streams: bool = False


@dataclass(frozen=True)
class NoOptions:
    """The `with:` block of a method without options."""


METHODS: Registry[Method] = Registry("method")


def blocks_read(names: Iterable[str | None]) -> set[str]:
    """Blocks of a recipe that these methods read besides the usual ones: the `acts_on` of their options."""
    return {
        block for name in names if name in METHODS for block in getattr(METHODS.get(str(name)).config, "acts_on", ())
    }


def method(
    name: str,
    config: type = NoOptions,
    tiny: str = "tiny",
    limits: tuple[Limit, ...] = (),
    look: Callable[[Sequence[Any], Any, Any], None] | None = None,
    streams: bool = False,
) -> Callable[[Callable], Callable]:
    """Register a stage builder under `app.name`: `@method("translation.parallel", config=Parallel)`."""

    def add(build: Callable) -> Callable:
        METHODS.register(name)(Method(name, config, build, tiny, limits, look, streams))
        return build

    return add


@dataclass(frozen=True)
class BuildContext:
    """What a part may look at while it is laid on a model.

    Args:
        seed: of everything random; equal seeds give equal weights.
        tokenizer: the run's, None where there is none.
        texts: training text for parts that calibrate; empty where there is none.
        dense: names of linear maps that a number format leaves alone, because they train.
    """

    seed: int = 0
    tokenizer: Any = None
    texts: Iterable[str] = ()
    dense: Sequence[str] = ()


@dataclass(frozen=True)
class Part:
    """Something a recipe lays on a model: an adapter or an edit. Fields are "module:attribute", imported on first use.

    Args:
        options: dataclass of the part's own keys (`with:` of an adapter, the keys beside `kind` of an edit); importing
            its module imports neither torch nor a library on torch.
        build: an adapter's `(model, AdapterConfig, options, BuildContext) -> model`, an edit's `(model, options,
            BuildContext) -> model`.
        trainer: `(trainer class, model, options) -> (trainer class, callbacks)` for parts that take part in the
            training steps; empty for the others.
        packs: whether rows that share a sequence stay apart under it.
        trains: whether an edit brings parts that train while the rest is frozen, and may be quantized.
    """

    build: str
    options: str = "core.config.registry:NoOptions"
    trainer: str = ""
    packs: bool = True
    trains: bool = False

    @cached_property
    def options_cls(self) -> type:
        return _resolve(self.options)

    @cached_property
    def builder(self) -> Callable[..., Any]:
        return _resolve(self.build)

    @cached_property
    def trainer_hook(self) -> Callable[..., Any] | None:
        return _resolve(self.trainer) if self.trainer else None


ADAPTERS: Registry[Part] = Registry("adapter kind")
EDITS: Registry[Part] = Registry("edit kind")

for _kind, _part in {
    "lora": Part("core.adapters.lora:build"),
    "bottleneck": Part("core.adapters.build:bottleneck", "core.config.adapters:BottleneckOptions"),
    "series": Part("core.adapters.build:series", "core.config.adapters:PresetOptions"),
    "series_after_mlp": Part("core.adapters.build:series_after_mlp", "core.config.adapters:PresetOptions"),
    "parallel": Part("core.adapters.build:parallel", "core.config.adapters:PresetOptions"),
    "prefix": Part(
        "core.adapters.build:prefix",
        "core.config.adapters:PrefixOptions",
        "core.adapters.build:no_recomputation",
        packs=False,
    ),  # fmt: skip
    "seq_bottleneck": Part("core.adapters.build:seq_bottleneck", "core.config.adapters:SeqBottleneckOptions"),
    "spiel": Part("core.sparse.build:spiel", "core.config.sparse:SpielOptions", "core.sparse.spiel_training:hook"),
}.items():
    ADAPTERS.register(_kind)(_part)

for _kind, _part in {
    "control": Part(
        "core.control.expand:build",
        "core.control.options:ControlConfig",
        trainer="core.control.trainer:hook",
        trains=True,
    ),
    "deepnorm": Part("core.control.deepnorm:build"),
    "ladder": Part("core.control.ladder:build", "core.control.options:LadderOptions"),
    "skip_ffn": Part("core.control.skip:build", "core.control.options:SkipOptions"),
    "green": Part(
        "core.sparse.green_training:build", "core.config.sparse:GreenOptions", "core.sparse.green_training:hook"
    ),
    "prune": Part("core.sparse.masks:build", "core.config.sparse:PruneOptions", "core.sparse.masks:hook"),
    "ast": Part("core.sparse.ast:build", "core.config.sparse:AstOptions", "core.sparse.ast:hook"),
    "welore": Part(
        "core.sparse.welore:build", "core.config.sparse:WeLoreOptions", "core.sparse.welore:hook", trains=True
    ),
    "learngene": Part(
        "core.control.learngene:build_auxiliary", "core.control.options:LearngeneOptions", "core.control.learngene:hook"
    ),
    "descend": Part("core.control.learngene:build_descendant", "core.control.options:DescendOptions"),
}.items():
    EDITS.register(_kind)(_part)


@dataclass(frozen=True)
class Quantizer:
    """A number format for frozen weights. `apply` and `loading` are "module:attribute", imported on first use.

    A recipe writes the format's name and, after colons, its settings ("awq:int4:g128"); both functions get the whole.

    Args:
        apply: `(model, spec, device, BuildContext | None) -> model`, on a model in memory.
        loading: `(spec, compute dtype) -> arguments of from_pretrained` for formats that quantize while reading.
        package: what must be importable. extra: the extra of graft that brings it.
        parse: `spec -> QuantSpec` of our own formats, without torch.
    """

    apply: str
    loading: str = ""
    package: str = ""
    extra: str = ""
    parse: str = ""

    def applied(self, model: Any, spec: str, device: str, context: BuildContext | None) -> Any:
        return _resolve(self.apply)(model, spec, device, context)

    def parsed(self, spec: str) -> Any:
        """The typed spec of one of our formats, None for another library's. Raises `ConfigError`."""
        return _resolve(self.parse)(spec.removeprefix("graft:")) if self.parse else None

    def loading_options(self, spec: str, dtype: Any) -> dict[str, Any]:
        return _resolve(self.loading)(spec, dtype)

    @property
    def missing(self) -> str | None:
        """How to get the package that is not here; None when all is there."""
        if not self.package or importlib.util.find_spec(self.package) is not None:
            return None
        return f"pip install 'graft[{self.extra}]'"


QUANTIZERS: Registry[Quantizer] = Registry("number format")

for _format in ("nf4", "int8"):
    QUANTIZERS.register(_format)(
        Quantizer(
            "core.quantization.bitsandbytes:apply", "core.quantization.bitsandbytes:loading", "bitsandbytes", "quant"
        )
    )
# The rows of core.quantization.presets; "graft:nf4" asks for ours where another library serves the plain name.
for _format in (
    "rtn", "llm_int8", "awq", "smoothquant_plus", "squeezellm", "gptq", "qoq", "comet", "abq", "bipolar", "bitmod",
    "edkm", "trilm", "bitlinear", "graft",
):  # fmt: skip
    QUANTIZERS.register(_format)(Quantizer("core.quantization.load:apply_preset", parse="core.quantization.spec:parse"))


# Experiment trackers by the names of transformers' integrations: the packages of which one must be importable.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}


@dataclass(frozen=True)
class App:
    """Where an app's rooms are. Rooms are named as "module" or "module:attribute" and imported on first use.

    Args:
        name: the word in `app:` of a recipe.
        data: module with `READERS`.
        pipeline, evaluator: "module:Class".
        methods: modules whose import registers the app's methods.
        model: "module:function", called like `core.training.build.build_base`, for apps whose model is not a causal
            language model; empty takes that one.
        smoke_tokens: new tokens that an answer needs at least, for the small form of a recipe.
        smoke_length: longest row of the small form.
        rooms: method → an `App` with the rooms of methods whose model or examples are of another kind.
    """

    name: str
    data: str
    pipeline: str
    evaluator: str
    methods: tuple[str, ...] = field(default=())
    model: str = ""
    smoke_tokens: int = 8
    smoke_length: int = 128
    rooms: Mapping[str, App] = field(default_factory=dict)

    @cached_property
    def build_model(self) -> Callable[..., Any] | None:
        return _resolve(self.model) if self.model else None

    @cached_property
    def readers(self) -> Any:
        """The `core.data.readers.Readers` of the data module."""
        return importlib.import_module(self.data).READERS

    @cached_property
    def pipeline_cls(self) -> Any:
        return _resolve(self.pipeline)

    @cached_property
    def evaluator_cls(self) -> Any:
        return _resolve(self.evaluator)

    def stand_in(self, reader: str) -> str:
        """The reader that replaces `reader` when its files are absent: by `STAND_INS` of the data module."""
        return getattr(importlib.import_module(self.data), "STAND_INS", {}).get(reader, "embedded")

    def load_methods(self) -> None:
        for module in self.methods:
            importlib.import_module(module)


def _resolve(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def app_names() -> list[str]:
    """Every package under `apps/`, which is looked up by name because the core knows no app."""
    import pkgutil

    places = importlib.import_module("apps").__path__
    return sorted(m.name for m in pkgutil.iter_modules(places) if m.ispkg)


def get_app(name: str) -> App:
    """The app called `name`, with its methods registered. Raises `ConfigError` for an unknown app."""
    names = app_names()
    if name not in names:
        raise ConfigError(
            f"unknown app '{name}'", hint=" ".join(filter(None, [nearest(name, names), f"known: {', '.join(names)}"]))
        )
    app: App = importlib.import_module(f"apps.{name}").APP
    app.load_methods()
    return app


def app_of(recipe: Any) -> App:
    """The app of a recipe, with the rooms of its last method where those are of another kind."""
    app = get_app(recipe.app)
    last = recipe.stages[-1].method if recipe.stages else recipe.method
    return app.rooms.get(last or "", app)
