"""The loader: every mistake has a place and a remedy, and what is right survives the round trip."""

from __future__ import annotations

import pytest
import yaml

from core.config.load import dump_yaml, load_recipe, recipe_from, resolve_stages, smoke
from core.errors import ConfigError, GraftError

GOOD = """\
app: translation
model:
  path: embedded
data:
  train: [{reader: embedded, split: train}]
  eval:
    - {reader: embedded, split: dev}
method: translation.parallel
train:
  lr: 2e-3
"""


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_good_recipe_and_yaml_float_without_a_dot(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD), ["train.batch.size=8", "data.train.0.limit=5", "seed=7"])
    assert (recipe.train.lr, recipe.train.batch.size, recipe.data.train[0].limit, recipe.seed) == (2e-3, 8, 5, 7)
    assert recipe.eval.select == "loss"


@pytest.mark.parametrize(
    "line, place, words",
    [
        ("trian: {lr: 1}", ":11", "did you mean 'train'?"),
        ("backend: {compile: model}", ":11", "none, blocks"),
        ("backend:\n  precision:\n    compute: fp8", ":13", "fp32, bf16"),
        ("seed: many", ":11", "whole number"),
        ("seed: -1", ":11", "at least 0"),
        ("checkpoint: [1]", ":11", "block of keys"),
        ("eval: {limit: 0}", ":11", "at least 1"),
        ("app: translation", ":11", "twice"),
        ("with: {directionz: both}", ":11", "unknown key 'directionz'"),
        ("trackers: wandb", ":11", "list"),
        ("eval: {every: yes}", ":11", "a number"),
        ("version: 2", ":11", "one of 1"),
        ("train2: [", ":12", "YAML"),
        ("output: 3", ":11", "quotes"),
    ],
)
def test_a_bad_line_names_itself(tmp_path, line, place, words):
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, GOOD + line + "\n"))
    text = str(caught.value)
    assert place in text and words in text, text


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("app: translation", "app: translate", "did you mean 'translation'?"),
        ("method: translation.parallel", "method: translation.paralel", "did you mean 'translation.parallel'?"),
        ("reader: embedded, split: train", "reader: mosses, split: train", "did you mean 'moses'?"),
        ("split: train", "split: train, with: {srcc: de}", "no argument 'srcc'"),
        ("  path: embedded", "  path: embedded\n  preset: tiny", "not both"),
        ("  path: embedded", "  preset: tiny", "tokenizer"),
        ("  path: embedded", "  dtype: fp32", "no model"),
        ("method: translation.parallel\n", "", "no method"),
        ("  lr: 2e-3", "  lr: 0", "above 0"),
        ("  lr: 2e-3", "  betas: [0.9]", "two numbers"),
        ("  lr: 2e-3", "  lr: .nan", "nan"),
    ],
)
def test_contradictions_and_unknown_names(tmp_path, old, new, words):
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, GOOD.replace(old, new)))
    assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize("override", ["train.lr", "=3", "seed.deep=1", "data.train.9.limit=1", "train.lr=[", "nope=1"])
def test_bad_overrides_quote_themselves(tmp_path, override):
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, GOOD), [override])
    assert override in str(caught.value)


def test_empty_missing_and_binary_files(tmp_path):
    for path in (write(tmp_path, ""), tmp_path / "absent.yaml"):
        with pytest.raises(ConfigError):
            load_recipe(path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(GraftError):
        load_recipe(binary)


def test_stages_merge_key_by_key_and_lists_replace(tmp_path):
    chain = GOOD.replace(
        "method: translation.parallel\n",
        "stages:\n  - {name: one, method: translation.parallel, train: {epochs: 3}}\n"
        "  - {name: two, method: translation.parallel, init: base, train: {batch: {size: 4}},"
        " data: {train: [{reader: embedded, split: dev}]}}\n",
    )
    one, two = resolve_stages(load_recipe(write(tmp_path, chain)))
    assert (one.recipe.train.epochs, one.recipe.train.lr, one.recipe.train.batch.size) == (3, 2e-3, 64)
    assert (two.recipe.train.epochs, two.recipe.train.batch.size, two.recipe.data.train[0].split) == (1, 4, "dev")
    assert two.init == "base"
    with pytest.raises(ConfigError, match="used twice"):
        load_recipe(write(tmp_path, chain.replace("name: two", "name: one")))


def test_the_resolved_recipe_loads_to_itself(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    again = load_recipe(write(tmp_path, dump_yaml(recipe)))
    assert again.to_dict() == recipe.to_dict()


def test_environment_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    recipe = load_recipe(
        write(tmp_path, GOOD), ["data.train.0.path=${SOMEWHERE}/x", "data.eval.0.path=${UNSET_NAME}/y"]
    )
    assert recipe.data.train[0].path == "/data/x" and recipe.data.eval[0].path == "${UNSET_NAME}/y"


def test_smoke_is_small_and_needs_no_files(tmp_path):
    text = GOOD.replace(
        "reader: embedded, split: train", "reader: moses, path: /absent/train, with: {src: en, tgt: de}"
    )
    small = smoke(load_recipe(write(tmp_path, text)))
    assert small.model.preset == "tiny" and small.model.path is None
    assert small.train.max_steps <= 4 and small.data.train[0].reader == "embedded" and small.data.train[0].limit == 64


def test_recipe_from_plain_data_checks_too():
    raw = yaml.safe_load(GOOD)
    assert recipe_from(raw).app == "translation"
    with pytest.raises(ConfigError):
        recipe_from({**raw, "nonsense": 1})
