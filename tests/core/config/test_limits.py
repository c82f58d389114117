"""A key that a method cannot act on is refused before training, with the reason; every other backend key passes."""

from __future__ import annotations

import inspect
import sys

import pytest

from core.config.load import parse_yaml, recipe_from, resolve_stages
from core.config.registry import METHODS as REGISTERED
from core.config.registry import app_names, get_app
from core.errors import ConfigError, UnsupportedError

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
        ("train: {label_smoothing: 0.1}", "its loss is TRL's"),
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


OWN_LOSS = {
    "embeddings.stage1": "embedded",
    "embeddings.graded": "embedded",
    "embeddings.warm": "embedded",
    "lm.mlm": "embedded",
    "tool_use.retriever": "embedded",
    "tool_use.qta": "embedded",
    "rtl.itertl": "embedded",
    "cuda.fsr": "embedded",
}


def of_app(name, block=""):
    app = name.partition(".")[0]
    reader = next(iter(get_app(app).readers.names()))
    head = f"app: {app}\nmodel: {{path: embedded}}\nmethod: {name}\ndata: {{train: [{{reader: {reader}}}]}}\n"
    raw, places = parse_yaml(head + block, "mine.yaml")
    return recipe_from(raw, places)


def test_every_method_with_a_trainer_of_its_own_says_what_its_loss_cannot_follow():
    """`lm.pretrain` only guards the usual trainer against spikes; a new method has to join one side or the other."""
    for app in app_names():
        get_app(app)
    found = set()
    for name in REGISTERED:
        entry = REGISTERED.get(name)
        if "trainer=" in inspect.getsource(sys.modules[entry.build.__module__]) and name != "lm.pretrain":
            found.add(name)
            keys = {limit.key for limit in entry.limits}
            assert {"train.label_smoothing", "train.z_loss", "backend.cross_entropy"} <= keys, name
    assert found >= set(OWN_LOSS) | set(METHODS)


@pytest.mark.parametrize("name", OWN_LOSS)
@pytest.mark.parametrize("key", ["label_smoothing", "z_loss"])
def test_a_loss_of_its_own_has_nothing_to_smooth(name, key):
    with pytest.raises(UnsupportedError, match=rf"{name} cannot follow train\.{key}: ") as caught:
        of_app(name, f"train: {{{key}: 0.1}}")
    assert "mine.yaml:5" in caught.value.where and caught.value.hint == "take it out"
    assert of_app(name, f"train: {{{key}: 0}}").data.packing is False


@pytest.mark.parametrize("name", ["embeddings.stage1", "tool_use.retriever"])
@pytest.mark.parametrize(
    "block",
    [
        "train: {batch: {unit: tokens}}",
        "train: {batch: {micro: 4}}",
        "backend: {cross_entropy: fused}",
        "backend: {kernels: fused}",
        "backend: {lora: fused}",
        "backend: {compile: blocks}",
        "backend: {activation_checkpoint: selective}",
        "backend: {offload: {activations: host}}",
        "backend: {precision: {params: bf16}}",
    ],
)
def test_switches_that_a_contrastive_trainer_has_not(name, block):
    with pytest.raises(UnsupportedError, match=f"{name} cannot follow"):
        of_app(name, block)


def test_lora_is_fused_inside_fused_layers():
    of_app("lm.pretrain", "backend: {lora: fused}")
    with pytest.raises(ConfigError, match="kernels are plain") as caught:
        of_app("lm.pretrain", "backend: {lora: fused, kernels: plain}")
    assert "mine.yaml:5 (backend.lora)" in caught.value.where


def test_candidates_share_no_sequence():
    with pytest.raises(UnsupportedError, match=r"rtl\.itertl cannot follow data\.packing"):
        recipe_from({**of_app("rtl.itertl").source.raw, "data": {"train": [{"reader": "embedded"}], "packing": True}})


@pytest.mark.parametrize("edit", [{"kind": "prune", "ce": 0}, {"kind": "ast", "ce": 0.0}])
def test_an_edit_that_gives_the_cross_entropy_no_weight(edit):
    raw = {**of_app("lm.pretrain").source.raw, "model": {"path": "embedded", "edits": [edit]}}
    recipe_from(raw)
    with pytest.raises(ConfigError, match="no weight, and train.z_loss"):
        recipe_from({**raw, "train": {"z_loss": 1e-4}})
    raw["model"]["edits"] = [{**edit, "ce": 0.5}]
    recipe_from({**raw, "train": {"z_loss": 1e-4}})


class Unread:
    """Examples that may be read while training, and not before."""

    def __iter__(self):
        raise AssertionError("the examples were read before training")


def every_method():
    for app in app_names():
        get_app(app)
    return REGISTERED.names()


@pytest.mark.parametrize("name", every_method())
def test_a_method_reads_a_stream_while_it_trains_or_refuses_it(name):
    """One that says it streams reads nothing while its stage is built; all others name the key and the reason."""
    app = name.partition(".")[0]
    rooms = get_app(app)
    reader = rooms.rooms.get(name, rooms).readers.names()[0]
    text = (
        f"app: {app}\nmodel: {{path: embedded}}\nmethod: {name}\ntrain: {{max_steps: 3}}\n"
        f"data:\n  train: [{{reader: {reader}}}]\n  streaming: true\n"
    )
    if not REGISTERED.get(name).streams:
        with pytest.raises(UnsupportedError, match=f"{name} cannot follow data.streaming") as caught:
            recipe_from(*parse_yaml(text, "mine.yaml"))
        assert caught.value.where.startswith("mine.yaml:7") and caught.value.hint
        return
    from core.training.stage import StageContext

    found = recipe_from(*parse_yaml(text, "mine.yaml"))
    options = resolve_stages(found)[0].options
    made = REGISTERED.get(name).build(StageContext(found, options, None, Unread(), [], rooms))
    with pytest.raises(AssertionError, match="before training"):
        next(iter(made.rows))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chat.sft", "keep: 0.5"),
        ("translation.mono", "shares: {de: 1}"),
        ("lm.pretrain", "shares: {de: 1}"),
        ("lm.pretrain", "alpha: 0.3"),
        ("lm.pretrain", "apart: true"),
    ],
)
def test_options_that_need_all_rows_are_refused_with_a_stream(name, options):
    raw = {**of_app(name, f"with: {{{options}}}").source.raw, "train": {"max_steps": 3}}
    recipe_from(raw)
    raw["data"] = {**raw["data"], "streaming": True}
    with pytest.raises(UnsupportedError, match=f"with.{options.partition(':')[0]}|documents apart") as caught:
        recipe_from(raw)
    assert "streaming to false" in caught.value.hint
