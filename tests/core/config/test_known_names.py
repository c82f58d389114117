"""A template that a method does not have is refused when the recipe is read, with the nearest name."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from core.config.load import parse_yaml, recipe_from
from core.config.registry import METHODS, app_names, get_app
from core.config.schema import key
from core.config.typed import build
from core.errors import ConfigError


def with_templates() -> dict[str, dataclasses.Field]:
    """The methods whose options name a template, a text with {fields} aside."""
    for app in app_names():
        get_app(app)
    found = {}
    for name in METHODS.names():
        for field in dataclasses.fields(METHODS.get(name).config):
            if field.name == "template" and "{" not in str(field.default):
                found[name] = field
    return found


def choices(name: str) -> list[str]:
    hint = typing.get_type_hints(METHODS.get(name).config)["template"]
    return list(typing.get_args(hint) or with_templates()[name].metadata.get("one_of", ()))


@pytest.mark.parametrize("name", with_templates())
def test_an_unknown_template_is_refused_where_it_is_written(name):
    known = choices(name)
    assert known, f"{name} takes any text as the name of a template: give the key one_of"
    app, default = name.partition(".")[0], with_templates()[name].default
    assert default in known
    rooms = get_app(app)
    reader = rooms.rooms.get(name, rooms).readers.names()[0]
    text = f"app: {app}\nmodel: {{path: embedded}}\nmethod: {name}\ndata: {{train: [{{reader: {reader}}}]}}\n"

    def read(template):
        return recipe_from(*parse_yaml(f"{text}with:\n  template: {template}", "mine.yaml"))

    with pytest.raises(ConfigError, match=f"expected one of .*{default}") as caught:
        read(f"{default}x")
    assert caught.value.where.startswith("mine.yaml:6 (with.template")
    assert caught.value.hint == f"did you mean '{default}'?"
    for template in known:
        read(template)


def test_one_of_says_what_it_takes():
    @dataclasses.dataclass
    class Options:
        name: str | None = key("a", "a name", one_of={"a": 1, "b": 2})

    assert dataclasses.fields(Options)[0].metadata["doc"] == "a name: a, b"
    assert build(Options, {"name": "b"}).name == "b" and build(Options, {"name": None}).name is None
    with pytest.raises(ConfigError, match="expected one of a, b; got 'c'"):
        build(Options, {"name": "c"})


@pytest.mark.parametrize(
    ("block", "hint"),
    [
        ("model: embedded", "write {path: embedded}, or other keys; valid keys: path, preset"),
        ("data: {train: rows.jsonl}", "write [{path: rows.jsonl}]"),
        ("data: {train: [rows.jsonl]}", "write {path: rows.jsonl}, or other keys; valid keys: reader, path"),
        ("train: [1]", "write {key: value}; valid keys: epochs"),
        ("with: plain", "write {key: value}"),
        ("data: {streaming: 'yes'}", "without quotes"),
        ("eval: {metrics: bleu}", "write [a, b]"),
    ],
)
def test_a_block_written_as_something_else_is_shown_as_a_block(block, hint):
    with pytest.raises(ConfigError) as caught:
        recipe_from(*parse_yaml(f"app: chat\n{block}", "mine.yaml"))
    assert hint in caught.value.hint and caught.value.where.startswith("mine.yaml:2")


def test_bounds_hold_for_the_items_of_a_list():
    @dataclasses.dataclass
    class Options:
        sizes: list[int] = key([], "sizes", least=1)

    assert build(Options, {"sizes": [1, 64]}).sizes == [1, 64]
    with pytest.raises(ConfigError, match="at least 1, got 0") as caught:
        build(Options, {"sizes": [64, 0]})
    assert "sizes.1" in caught.value.where
