"""Loading: what is there loads, what is missing, torn or unreachable is named."""

from __future__ import annotations

import json

import pytest
import torch

from core.config.schema import ModelConfig
from core.errors import CheckpointError, ConfigError, GraftError
from core.models.load import load_model, load_tokenizer, resolve_path
from core.models.presets import PRESETS, build_config
from core.models.tokenizer import train_bpe


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    tokenizer = train_bpe(["a small house"], 300)
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


@pytest.fixture
def copy(saved, tmp_path):
    import shutil

    return shutil.copytree(saved[0], tmp_path / "copy")


def test_a_folder_and_a_run_folder_give_the_same_model(saved):
    folder, model, tokenizer = saved
    ids = torch.tensor([tokenizer("a house")["input_ids"]])
    for path in (str(folder), str(folder.parent)):
        config = ModelConfig(path=path)
        loaded_tokenizer = load_tokenizer(config)
        loaded = load_model(config, loaded_tokenizer)
        assert loaded_tokenizer("a house")["input_ids"] == tokenizer("a house")["input_ids"]
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert resolve_path(str(folder.parent)) == str(folder)


@pytest.mark.parametrize("dtype,expected", [("auto", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_dtype_is_what_was_asked(saved, dtype, expected):
    model = load_model(ModelConfig(path=str(saved[0]), dtype=dtype), saved[2])
    assert next(model.parameters()).dtype == expected


def test_auto_keeps_a_half_precision_checkpoint_off_the_cpu_only(saved, tmp_path):
    saved[1].to(torch.bfloat16).save_pretrained(tmp_path)
    saved[1].to(torch.float32)
    assert load_model(ModelConfig(path=str(tmp_path)), saved[2]).dtype == torch.float32


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_what_was_asked(saved, attention):
    model = load_model(ModelConfig(path=str(saved[0]), attention=attention), saved[2])
    assert model.config._attn_implementation == attention
    assert (
        load_model(ModelConfig(preset="tiny", attention=attention), saved[2]).config._attn_implementation == attention
    )


@pytest.mark.parametrize(
    "path,match",
    [
        ("/nowhere/model", "not found"),
        ("./nowhere", "not found"),
        ("~/no/such/model", "not found"),
        (__file__, "folder"),
    ],
)
def test_a_missing_folder_is_named(path, match):
    with pytest.raises(CheckpointError, match=match) as error:
        load_model(ModelConfig(path=path), None)
    assert path.lstrip("~") in error.value.where


def test_an_unreachable_hub_id_says_what_to_give_instead():
    for load in (load_tokenizer, lambda config: load_model(config, None)):
        with pytest.raises(CheckpointError, match="nobody/nothing") as error:
            load(ModelConfig(path="nobody/nothing"))
        assert "local folder that holds config.json" in str(error.value)


def test_an_empty_folder_and_an_unfinished_run(tmp_path):
    with pytest.raises(CheckpointError, match="no config.json"):
        resolve_path(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no model yet") as error:
        resolve_path(str(tmp_path))
    assert "--resume" in error.value.hint


def test_weights_that_are_absent_torn_or_incomplete(copy, saved):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    config = ModelConfig(path=str(copy))
    weights.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_model(config, saved[2])
    for torn in (whole[: len(whole) // 2], whole[:4], b"garbage" * 10):
        weights.write_bytes(torn)
        with pytest.raises(CheckpointError) as error:
            load_model(config, saved[2])
        assert error.value.where == str(copy)
    from safetensors.torch import load, save

    tensors = load(whole)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    weights.write_bytes(save(tensors, {"format": "pt"}))
    with pytest.raises(CheckpointError, match="1 tensors are missing, first model.layers.1.mlp.up_proj.weight"):
        load_model(config, saved[2])


def test_a_missing_shard_is_an_error(copy, saved):
    saved[1].save_pretrained(copy, max_shard_size="100KB")
    (copy / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    with pytest.raises(CheckpointError):
        load_model(ModelConfig(path=str(copy)), saved[2])


def test_broken_config_and_tokenizer_files(copy, saved):
    (copy / "config.json").write_text("{ not json")
    with pytest.raises(CheckpointError):
        load_model(ModelConfig(path=str(copy)), saved[2])
    (copy / "config.json").write_text(json.dumps({"model_type": "martian"}))
    with pytest.raises(CheckpointError):
        load_model(ModelConfig(path=str(copy)), saved[2])
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(GraftError):
        load_tokenizer(ModelConfig(path=str(copy)))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(ModelConfig(path=str(copy)))


def test_a_tokenizer_needs_an_end_and_gets_a_padding(saved, tmp_path):
    folder, _, _ = saved
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    place = tmp_path / "m" / "tokenizer_config.json"
    names = json.loads(place.read_text())
    names.pop("pad_token")
    place.write_text(json.dumps(names))
    tokenizer = load_tokenizer(ModelConfig(path=str(tmp_path / "m")))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    names.pop("eos_token")
    place.write_text(json.dumps(names))
    with pytest.raises(CheckpointError, match="no end-of-text"):
        load_tokenizer(ModelConfig(path=str(tmp_path / "m")))


def test_a_folder_with_a_tokenizer_alone_is_enough_for_a_tokenizer(saved, tmp_path):
    saved[2].save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelConfig(preset="tiny", tokenizer=str(tmp_path)))
    assert loaded.get_vocab() == saved[2].get_vocab()
    with pytest.raises(CheckpointError, match="no model"):
        load_model(ModelConfig(path=str(tmp_path)), loaded)


def test_without_network_the_answer_is_quick(monkeypatch):
    import socket
    import time

    from huggingface_hub import constants

    def unresolved(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        load_model(ModelConfig(path="nobody/nothing"), None)
    assert time.monotonic() - start < 5


def test_a_tokenizer_that_does_not_fit_is_refused(saved):
    rows = saved[1].get_input_embeddings().weight.shape[0]
    bigger = train_bpe(["hello there " * 9, "another text here"], rows + 5)
    assert len(bigger) > rows
    with pytest.raises(ConfigError, match=f"{len(bigger)} tokens, the model {rows} rows"):
        load_model(ModelConfig(path=str(saved[0])), bigger)


def test_what_is_not_available_is_said(saved):
    tokenizer = saved[2]
    for config, error in (
        (ModelConfig(path=str(saved[0]), preset="tiny"), ConfigError),
        (ModelConfig(), ConfigError),
    ):
        with pytest.raises(error):
            load_model(config, tokenizer)
    with pytest.raises(ConfigError, match="trained on the training text"):
        load_tokenizer(ModelConfig(tokenizer="bpe:300"))
    with pytest.raises(ConfigError, match="bpe:SIZE"):
        load_tokenizer(ModelConfig(tokenizer="bpe:many"), ["a"])
    with pytest.raises(ConfigError, match="no tokenizer"):
        load_tokenizer(ModelConfig(preset="tiny"))


def test_code_that_comes_with_a_model_is_not_run(copy, saved):
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "martian"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    with pytest.raises(GraftError, match="its own Python code"):
        load_model(ModelConfig(path=str(copy)), saved[2])
    assert not (copy / "ran").exists()


# ---- presets ---------------------------------------------------------------------------------------------------------

SIZES = {"tiny": 0.1, "tiny-gpt2": 0.1, "llama-3m": 2.7, "llama-20m": 17.7, "gpt2-14m": 10.8, "gpt2-17m": 14.4}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model(name):
    from transformers import AutoModelForCausalLM

    tokenizer = train_bpe(["ab"], 260)
    config = build_config(name, 260, tokenizer)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (0, 1, None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embedding = model.get_input_embeddings().weight
    millions = (sum(p.numel() for p in model.parameters()) - embedding.numel()) / 1e6
    if name in SIZES:
        assert millions == pytest.approx(SIZES[name], abs=0.7), millions
    if name.startswith("gpt2"):
        assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop > 0


def test_a_preset_is_the_same_for_the_same_seed_and_leaves_the_random_state():
    tokenizer = train_bpe(["ab"], 260)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (load_model(ModelConfig(preset="tiny"), tokenizer, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset") as error:
        build_config("lama-3m", 260)
    assert "did you mean 'llama-3m'" in error.value.hint
