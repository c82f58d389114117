"""Read a recipe: YAML and `key.path=value` overrides in, one checked `Recipe` out.

Everything that can be checked without weights is checked here, in milliseconds and without torch: keys, types, choices,
bounds, the app, each stage's method and the options it declares, and the arguments of every reader.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core.config.limits import check_limits, settle
from core.config.parts import check_base, check_parts, check_trackers, check_weighed
from core.config.registry import METHODS, App, app_names, app_of, blocks_read, get_app
from core.config.schema import Recipe, SourceConfig, StageConfig, to_plain
from core.config.typed import Places, UnknownKey, build
from core.errors import ConfigError, UnsupportedError, nearest

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass
class Source:
    """The recipe as written: plain data after overrides, and the place of every key."""

    file: str
    raw: dict[str, Any]
    places: Places


@dataclass
class ResolvedStage:
    """A stage ready to run: position, typed options of its method, and the recipe with its overrides merged."""

    index: int
    name: str
    method: str
    options: Any
    init: str
    recipe: Recipe


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in `path` with `key.path=value` overrides applied, checked as a whole.

    Raises:
        ConfigError: naming file, line and key, and the nearest valid key where one is close.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("recipe not found", where=str(path), hint="graft ls shows the recipes that ship") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe cannot be read: {error}", where=str(path)) from error
    raw, places = parse_yaml(text, str(path))
    for override in overrides:
        apply_override(raw, places, override)
    return recipe_from(raw, places)


def recipe_from(raw: dict[str, Any], places: Places | None = None) -> Recipe:
    """A checked recipe from plain data, for callers that have no file."""
    places = places or Places("recipe")
    recipe = build(Recipe, expand_variables(raw, places), places)
    recipe.source = Source(places.file, copy.deepcopy(raw), places)
    _check(recipe, places)
    return recipe


def parse_yaml(text: str, file: str = "recipe") -> tuple[dict[str, Any], Places]:
    """Plain data and the place of every key. Duplicate keys and YAML errors are `ConfigError`s with a line."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from error
    places = Places(file)
    if node is None:
        raise ConfigError(
            "the recipe is empty", where=file, hint="the smallest recipe gives app, model.path, data.train and method"
        )
    value = _plain(node, (), places, file)
    if not isinstance(value, dict):
        raise ConfigError("expected a block of keys at the top of the recipe", where=f"{file}:1")
    return value, places


def _plain(node: yaml.Node, path: tuple, places: Places, file: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        block: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            name = (
                _plain(key_node, path, places, file) if isinstance(key_node, yaml.ScalarNode) else str(key_node.value)
            )
            here = f"{file}:{key_node.start_mark.line + 1}"
            if name in block:
                raise ConfigError(f"key '{name}' is given twice", where=f"{here} and {places.lines[(*path, name)]}")
            places.lines[(*path, name)] = here
            block[name] = _plain(value_node, (*path, name), places, file)
        return block
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            places.lines[(*path, index)] = f"{file}:{item.start_mark.line + 1}"
            items.append(_plain(item, (*path, index), places, file))
        return items
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", where=f"{file}:{node.start_mark.line + 1}") from error
    finally:
        loader.dispose()


def apply_override(raw: dict[str, Any], places: Places, override: str) -> None:
    """Set `key.path=value` in `raw`; the value is YAML, list items are addressed by number."""
    dotted, separator, text = override.partition("=")
    here = f"override '{override}'"
    if not separator or not dotted:
        raise ConfigError("an override is written key.path=value", where=here)
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise ConfigError("the value of an override is YAML", where=here) from error
    parts: list[Any] = [int(p) if p.isdigit() else p for p in dotted.split(".")]
    target: Any = raw
    for depth, part in enumerate(parts[:-1]):
        if isinstance(target, list) and isinstance(part, int) and part < len(target):
            target = target[part]
        elif isinstance(target, dict):
            target = target.setdefault(part, {})
            if target is None:
                target = {}
        else:
            raise ConfigError(f"'{'.'.join(map(str, parts[: depth + 1]))}' has no such part", where=here)
    last = parts[-1]
    if isinstance(target, list):
        if not isinstance(last, int) or last > len(target):
            raise ConfigError(f"'{last}' is not an item of that list (it has {len(target)})", where=here)
        target[last : last + 1] = [value]
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ConfigError(f"'{'.'.join(map(str, parts[:-1]))}' is not a block of keys", where=here)
    for length in range(1, len(parts)):
        places.lines.setdefault(tuple(parts[:length]), here)
    places.lines[tuple(parts)] = here


def expand_variables(value: Any, places: Places, path: tuple = ()) -> Any:
    """Replace ${NAME} in text by the environment's value; an unset name is left for the source's own check."""
    if isinstance(value, dict):
        return {name: expand_variables(item, places, (*path, name)) for name, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item, places, (*path, i)) for i, item in enumerate(value)]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), value)
    return value


def merge_blocks(base: Any, over: Any) -> Any:
    """Blocks merge key by key; anything else, lists included, is replaced."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{name: merge_blocks(base.get(name), item) for name, item in over.items()}}
    return copy.deepcopy(over)


def resolve_stages(recipe: Recipe) -> list[ResolvedStage]:
    """The chain of stages, each with the recipe it sees and its method's typed options."""
    app = get_app(recipe.app)
    places = recipe.source.places if recipe.source else Places("recipe")
    if recipe.stages and recipe.method:
        raise ConfigError("give either method or stages, not both", where=places.of(("method",)))
    if not recipe.stages and not recipe.method:
        raise ConfigError(
            "no method: nothing to run",
            where=places.of(()),
            hint=f"methods of {recipe.app}: {', '.join(_methods_of(app)) or 'none'}",
        )
    sugar, method = not recipe.stages, recipe.method or ""
    stages = recipe.stages or [StageConfig(name=method.partition(".")[2], method=method, with_=recipe.with_)]
    resolved, names = [], set()
    plain = recipe.to_dict()
    for index, stage in enumerate(stages):
        path: tuple = () if sugar else ("stages", index)
        if not stage.method:
            raise ConfigError(
                "the stage has no method", where=places.of(path), hint=f"known: {', '.join(METHODS.names())}"
            )
        own = stage.method.partition(".")[0]
        if own != app.name and own in app_names():
            what = f"{stage.method} is a method of the app {own}, and the recipe is of {app.name}"
            raise ConfigError(what, where=places.of((*path, "method")), hint=f"set app: {own}")
        if stage.method not in METHODS:
            hint = " ".join(
                filter(None, [nearest(stage.method, METHODS.names()), f"known: {', '.join(METHODS.names())}"])
            )
            raise ConfigError(f"unknown method '{stage.method}'", where=places.of((*path, "method")), hint=hint)
        name = stage.name or stage.method.partition(".")[2]
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in names:
            raise ConfigError(
                f"stage name '{name}' is {'used twice' if name in names else 'not a folder name'}",
                where=places.of((*path, "name")),
            )
        names.add(name)
        merged = {**plain, "stages": [], "method": stage.method, "with": stage.with_}
        for block in ("data", "train", "model", "verify"):
            merged[block] = merge_blocks(plain[block], getattr(stage, block))
        shifted = _shift(places, path) if not sugar else places
        options: Any = build(
            METHODS.get(stage.method).config, expand_variables(stage.with_, places), places, (*path, "with")
        )
        view = build(Recipe, expand_variables(merged, shifted), shifted)
        view.source = recipe.source
        resolved.append(ResolvedStage(index, name, stage.method, options, stage.init, view))
    return resolved


def _shift(places: Places, path: tuple) -> Places:
    """Places for a stage's merged recipe: its own lines win over the recipe's."""
    own = {p[len(path) :]: line for p, line in places.lines.items() if p[: len(path)] == path and len(p) > len(path)}
    return Places(places.file, {**places.lines, **own})


def _methods_of(app: App) -> list[str]:
    return [name for name in METHODS.names() if name.startswith(app.name + ".")]


def _check(recipe: Recipe, places: Places) -> None:
    if not recipe.app:
        raise ConfigError("the recipe names no app", where=places.of(()), hint="add app: translation")
    app = app_of(recipe)
    check_base(recipe.model, places)
    if len(recipe.train.betas) != 2 or not all(0 <= b < 1 for b in recipe.train.betas):
        raise ConfigError("betas are two numbers in [0, 1)", where=places.of(("train", "betas")))
    acted_on = blocks_read([stage.method for stage in recipe.stages] or [recipe.method])
    _refuse_inert(recipe, places, (), acted_on)
    check_trackers(recipe.trackers, places)
    if recipe.backend.lora == "fused" and recipe.backend.kernels == "plain":
        raise ConfigError("LoRA is fused inside fused layers, and kernels are plain",
                          where=places.of(("backend", "lora")), hint="set kernels to auto or fused, or lora to auto"
                          )  # fmt: skip
    settle(recipe, lambda name: METHODS.get(name).limits if name in METHODS else ())
    for index, stage in enumerate(resolve_stages(recipe)):
        prefix: tuple = ("stages", index) if recipe.stages else ()
        _refuse_inert(stage.recipe, places, prefix, acted_on)
        streaming = _written(places, prefix, "data", "streaming")
        if stage.recipe.data.streaming and not METHODS.get(stage.method).streams:
            raise UnsupportedError(
                f"{stage.method} cannot follow data.streaming: its rows are read before training",
                where=places.of(streaming),
                hint="set it to false",
            )
        check_limits(stage.method, METHODS.get(stage.method).limits, stage.recipe, places, prefix, stage.options)
        own = _written(places, prefix, "model")
        check_parts(stage.recipe.model, places, own, stage.recipe.data.packing)
        check_weighed(stage.recipe.model, stage.recipe.train, places, own)
        for block in ("train", "eval"):
            for number, source in enumerate(getattr(stage.recipe.data, block)):
                check_source(app, source, places, _written(places, prefix, "data", block, number))
        if stage.recipe.data.streaming and stage.recipe.train.max_steps is None:
            raise ConfigError(
                "a stream has no length to count epochs with",
                where=places.of(streaming),
                hint="set train.max_steps",
            )
        if stage.recipe.data.streaming and stage.recipe.train.batch.ramp:
            raise ConfigError(
                "a stream is read in batches of one size",
                where=places.of(("train", "batch", "ramp")),
                hint="take train.batch.ramp out, or set data.streaming: false",
            )
        if isinstance(stage.recipe.eval.retention, list):
            for number, source in enumerate(stage.recipe.eval.retention):
                check_source(get_app("lm"), source, places, ("eval", "retention", number))
        if not stage.recipe.data.train:
            raise ConfigError(
                "no training data", where=places.of(("data",)), hint="add data.train: [{reader: …, path: …}]"
            )


def _written(places: Places, prefix: tuple, *path: Any) -> tuple:
    """Where a key of a stage stands: in the stage itself, or in the recipe for all stages."""
    return (*prefix, *path) if (*prefix, *path) in places.lines else path


INERT = ("data.process", "verify", "inference.engine", "inference.sampling")


def _refuse_inert(recipe: Recipe, places: Places, prefix: tuple, acted_on: set[str]) -> None:
    """Keys that nothing acts on yet keep their default: ignoring a wish would be worse than refusing it."""
    for dotted in INERT:
        if dotted in acted_on:
            continue
        path = tuple(dotted.split("."))
        given, default = recipe.to_dict(), Recipe().to_dict()
        for part in path:
            given, default = given[part], default[part]
        if given != default:
            where = places.of(_written(places, prefix, *path))
            raise UnsupportedError(f"{dotted} has no effect yet", where=where, hint="take the key out of the recipe")


def check_source(app: App, source: SourceConfig, places: Places, path: tuple) -> None:
    """The reader exists and takes the arguments under `with:`."""
    if source.reader not in app.readers:
        names = app.readers.names()
        hint = " ".join(filter(None, [nearest(source.reader, names), f"readers of {app.name}: {', '.join(names)}"]))
        raise ConfigError(f"unknown reader '{source.reader}'", where=places.of((*path, "reader")), hint=hint)
    accepted = app.readers.arguments(source.reader)
    for name in source.with_:
        if name not in accepted:
            what = f"reader '{source.reader}' has no argument '{name}'"
            if name in SourceConfig.__dataclass_fields__:
                hint = f"{name} stands beside with:, not in it"
                raise ConfigError(what, where=places.of((*path, "with", name)), hint=hint)
            raise UnknownKey(what, places, (*path, "with", name), accepted, listed="it takes")


def missing_variables(text: str | None) -> list[str]:
    """Names of environment variables that a path still waits for."""
    return _VARIABLE.findall(text or "")


def dump_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True, width=120)


SMOKE_ROWS = 64


def smoke(recipe: Recipe) -> Recipe:
    """The same recipe small enough for seconds on a laptop: tiny random model, 64 rows, a few steps.

    Sources whose files are not here are replaced by the app's stand-in reader, so every recipe can be tried.
    """
    app = app_of(recipe)
    raw = copy.deepcopy(recipe.source.raw) if recipe.source else recipe.to_dict()
    places = recipe.source.places if recipe.source else Places("recipe")
    model = raw.get("model") or {}
    tiny = METHODS.get(resolve_stages(recipe)[0].method).tiny
    raw["model"] = {**model, "path": None, "preset": tiny, "tokenizer": "bpe:512", "revision": None, "dtype": "fp32"}
    limits = {"max_steps": 4, "batch": {"size": 8, "unit": "rows"}}
    raw["train"] = merge_blocks(raw.get("train") or {}, limits)
    raw["data"] = _smoke_data(app, raw.get("data") or {}, base=True)
    raw["eval"] = merge_blocks(
        raw.get("eval") or {},
        {"limit": 4, "every": 0, "max_seconds": 5, "sampling": {"max_new_tokens": app.smoke_tokens, "beams": 1}},
    )
    if isinstance(raw["eval"].get("retention"), list):
        raw["eval"]["retention"] = [_smoke_source(get_app("lm"), source) for source in raw["eval"]["retention"]]
    raw["checkpoint"] = merge_blocks(raw.get("checkpoint") or {}, {"every": 2, "keep": 1})
    raw["output"] = "runs/smoke-{recipe}/{seed}"
    for stage in raw.get("stages") or []:
        stage["model"] = {
            k: v for k, v in (stage.get("model") or {}).items() if k not in ("path", "preset", "tokenizer")
        }
        stage["train"] = merge_blocks(stage.get("train") or {}, limits)
        if stage.get("data"):
            stage["data"] = _smoke_data(app, stage["data"], base=False)
    return recipe_from(raw, places)


def _smoke_data(app: App, data: dict[str, Any], *, base: bool) -> dict[str, Any]:
    data = copy.deepcopy(data)
    for block in ("train", "eval"):
        if block in data:
            data[block] = [_smoke_source(app, source) for source in data[block] or []]
    if base or "max_length" in data:
        data["max_length"] = min(int(data.get("max_length", 512)), app.smoke_length)
    return data


def _smoke_source(app: App, source: dict[str, Any]) -> dict[str, Any]:
    source = {**source, "limit": min(source.get("limit") or SMOKE_ROWS, SMOKE_ROWS)}
    path = expand_variables(source.get("path"), Places())
    if path is None or (not missing_variables(path) and _present(path)):
        return source
    stand_in = app.stand_in(source.get("reader", "jsonl"))
    accepted = app.readers.arguments(stand_in)
    arguments = {name: value for name, value in (source.get("with") or {}).items() if name in accepted}
    return {"reader": stand_in, "limit": source["limit"], "weight": source.get("weight", 1.0), "with": arguments}


def _present(path: str) -> bool:
    """A file, a folder, or a prefix that files share."""
    place = Path(path)
    return place.exists() or any(place.parent.glob(place.name + ".*"))
