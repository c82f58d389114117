"""From plain data to typed dataclasses, with the place of every mistake.

`build` walks a nested dictionary beside a dataclass. An unknown key names the nearest valid one; a wrong type, a value
outside its choices or bounds says what was expected. `Places` remembers the file and line that each key came from.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union

from core.errors import ConfigError, nearest

T = TypeVar("T")
Path = tuple[Any, ...]


@dataclass
class Places:
    """Where each key was written: key path → "file:line" or the override's text."""

    file: str = ""
    lines: dict[Path, str] = field(default_factory=dict)

    def of(self, path: Path) -> str:
        """The place of `path` or of its closest written parent, followed by the dotted key."""
        dotted = ".".join(str(part) for part in path)
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                place = self.lines[path[:length]]
                return f"{place} ({dotted})" if dotted else place
        return " ".join(filter(None, [self.file, f"({dotted})" if dotted else ""]))


class UnknownKey(ConfigError):
    """A key that its block does not have.

    Args:
        path: of the key, as its block sees it. known: the keys that the block has. listed: what they are called.
    """

    def __init__(
        self, what: str, places: Places, path: Path, known: Iterable[str], *, listed: str = "valid keys"
    ) -> None:
        self.path, self.known = path, list(known)
        hint = f"{listed}: {', '.join(self.known) or 'none'}"
        near = nearest(str(path[-1]), self.known)
        super().__init__(what, where=places.of(path), hint=f"{near} {hint}" if near else hint)


def build(cls: type[T], value: Any, places: Places | None = None, path: Path = ()) -> T:
    """An instance of dataclass `cls` from a dictionary. Raises `ConfigError` at the first bad key."""
    places = places or Places()
    if value is None:
        value = {}
    hints = typing.get_type_hints(cls)
    fields = {f.name.rstrip("_"): f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    if not isinstance(value, dict):
        form = _meant(cls, value)
        meant = f"write {form}, or other keys" if form else "write {key: value}"
        raise ConfigError(
            f"expected a block of keys, got {_show(value)}",
            where=places.of(path),
            hint=f"{meant}; valid keys: {', '.join(fields) or 'none'}",
        )
    arguments = {}
    for name, item in value.items():
        if name not in fields:
            raise UnknownKey(f"unknown key '{name}'", places, (*path, name), fields)
        spec = fields[name]
        arguments[spec.name] = convert(hints[spec.name], item, places, (*path, name))
        _check_bounds(arguments[spec.name], spec.metadata, places, (*path, name))
        _check_known(arguments[spec.name], spec.metadata, places, (*path, name))
    missing = [
        n
        for n, f in fields.items()
        if n not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"missing key '{missing[0]}'", where=places.of(path), hint=f"add {missing[0]}: …")
    return cls(**arguments)


def convert(hint: Any, value: Any, places: Places, path: Path) -> Any:
    """`value` as the type `hint`, or a `ConfigError` that says what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, places, path)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _no_choice(value, arguments, places, path)
    if origin is list or hint is list:
        inner = arguments[0] if arguments else Any
        if not isinstance(value, list):
            form = _meant(inner, value)
            hint = f"write [{form}]" if form else "write [a, b] or one '- ' line an item"
            raise ConfigError(f"expected a list, got {_show(value)}", where=places.of(path), hint=hint)
        return [convert(inner, item, places, (*path, i)) for i, item in enumerate(value)]
    if origin is tuple:
        inner = arguments[0] if arguments else Any
        return tuple(convert(list[inner], value, places, path))  # type: ignore[valid-type]
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            got = f"expected a block of keys, got {_show(value)}"
            raise ConfigError(got, where=places.of(path), hint="write {key: value}")
        return dict(value)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, places, path)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, places, path)


def _meant(cls: Any, value: Any) -> str:
    """How a text that stands for a block with a `path` is written in full."""
    has = dataclasses.is_dataclass(cls) and any(f.name == "path" for f in dataclasses.fields(cls))
    return f"{{path: {value}}}" if has and isinstance(value, str) else ""


def _convert_union(options: tuple[Any, ...], value: Any, places: Places, path: Path) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is type(None):
            continue
        try:
            return convert(option, value, places, path)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    wanted = " or ".join(_name(o) for o in options)
    raise ConfigError(f"expected {wanted}; got {_show(value)}", where=places.of(path))


def _convert_scalar(hint: Any, value: Any, places: Places, path: Path) -> Any:
    """YAML 1.1 reads 2e-4 as text, so a float is also taken from text that spells one."""
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    if hint is float and not isinstance(value, bool):
        if isinstance(value, (int, float)):
            return float(value) if isinstance(value, float) else value
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                value = str(value)
    if hint is str and isinstance(value, str):
        return value
    advice = "put it in quotes" if hint is str and isinstance(value, (int, float, bool)) else None
    if hint is bool and str(value).lower() in ("yes", "no", "on", "off", "true", "false"):
        advice = "write true or false, without quotes"
    raise ConfigError(f"expected {_name(hint)}, got {_show(value)}", where=places.of(path), hint=advice)


def _check_bounds(value: Any, metadata: Any, places: Places, path: Path) -> None:
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check_bounds(item, metadata, places, (*path, number))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):
        raise ConfigError(f"expected a finite number, got {value}", where=places.of(path))
    for name, broken in (
        ("least", lambda bound: value < bound),
        ("most", lambda bound: value > bound),
        ("above", lambda bound: value <= bound),
    ):
        if name in metadata and broken(metadata[name]):
            words = {"least": "at least", "most": "at most", "above": "above"}[name]
            raise ConfigError(f"expected a number {words} {metadata[name]}, got {value}", where=places.of(path))


def _check_known(value: Any, metadata: Any, places: Places, path: Path) -> None:
    if "one_of" in metadata and value is not None and value not in metadata["one_of"]:
        raise _no_choice(value, metadata["one_of"], places, path)


def _no_choice(value: Any, choices: Iterable[Any], places: Places, path: Path) -> ConfigError:
    names = [str(choice) for choice in choices]
    return ConfigError(
        f"expected one of {', '.join(names)}; got {_show(value)}",
        where=places.of(path),
        hint=nearest(str(value), names) or None,
    )


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
