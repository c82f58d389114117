"""A key that a method cannot act on is refused before training, with the reason; every other backend key passes."""

from __future__ import annotations

import pytest

from core.config.load import parse_yaml, recipe_from, resolve_stages
from core.errors import UnsupportedError

METHODS = {
    "chat.dpo": ("chat", "preferences"),
    "chat.grpo": ("chat", "embedded"),
    "translation.cpo": ("translation", "triplets"),
}


def recipe(method, block=""):
    app, reader = METHODS[method]
    head = f"app: {app}\nmodel: {{path: embedded}}\nmethod: {method}\n"
    raw, places = parse_yaml(f"{head}data:\n  train: [{{reader: {reader}}}]\n{block}", "mine.yaml")
    return recipe_from(raw, places)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("  packing: true", "never share a sequence"),
        ("  streaming: true\ntrain: {max_steps: 3}", "read before training"),
        ("backend: {packed_attention: varlen}", "not packed"),
        ("train: {label_smoothing: 0.1}", "not over single tokens"),
        ("train: {z_loss: 1e-4}", "its loss is TRL's"),
    ],
)
def test_rows_that_stand_alone(method, block, why):
    with pytest.raises(UnsupportedError, match=why) as caught:
        recipe(method, block)
    assert caught.value.where.startswith("mine.yaml:") and caught.value.hint


FORMS = [("chat.dpo", "whole"), ("chat.grpo", "whole"), ("translation.cpo", "fused")]


@pytest.mark.parametrize(("method", "form"), FORMS)
def test_the_form_of_the_loss_is_trls(method, form):
    with pytest.raises(UnsupportedError, match=r"backend\.cross_entropy: TRL"):
        recipe(method, f"backend: {{cross_entropy: {form}}}")
    other = {"whole": "fused", "fused": "whole"}[form]
    recipe(method, f"backend: {{cross_entropy: {other}}}")


def test_a_head_that_trl_would_pass_by():
    for key in ("targets: [q_proj, lm_head]", "modules_to_save: [lm_head]"):
        adapters = f"stages:\n  - {{name: a, method: chat.dpo, model: {{adapters: [{{kind: lora, {key}}}]}}}}"
        text = f"app: chat\nmodel: {{path: embedded}}\ndata: {{train: [{{reader: preferences, path: x}}]}}\n{adapters}"
        raw, places = parse_yaml(text, "mine.yaml")
        with pytest.raises(UnsupportedError, match="head") as caught:
            recipe_from(raw, places)
        assert "stages.0.model.adapters" in caught.value.where


@pytest.mark.parametrize("method", METHODS)
def test_the_resolved_recipe_says_what_holds_and_loads_again(method):
    found = recipe(method)
    assert found.data.packing is False
    assert recipe_from(found.to_dict()).data.packing is False


def test_a_chain_packs_where_it_can():
    chain = {
        "app": "chat",
        "model": {"path": "embedded"},
        "data": {"train": [{"reader": "embedded"}], "packing": True},
        "stages": [{"method": "chat.sft"}, {"method": "chat.dpo", "data": {"train": [{"reader": "preferences"}]}}],
    }
    assert [stage.recipe.data.packing for stage in resolve_stages(recipe_from(chain))] == [True, False]
    chain["stages"][1]["data"]["packing"] = True
    with pytest.raises(UnsupportedError, match="never share"):
        recipe_from(chain)


def test_answers_are_counted_in_rows():
    with pytest.raises(UnsupportedError, match=r"train\.batch\.unit"):
        recipe("chat.grpo", "train: {batch: {size: 64, unit: tokens}}")


@pytest.mark.parametrize("method", METHODS)
def test_what_trl_can_follow_passes(method):
    recipe(
        method,
        "backend: {kernels: fused, lora: fused, compile: blocks, activation_checkpoint: selective, workers: 1,"
        " optimizer_step: plain, async_input: false, precision: {params: bf16}, offload: {activations: host}}",
    )
    recipe(method, "  packing: false")
