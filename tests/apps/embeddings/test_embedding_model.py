"""Decoders opened up, whole models through folders, and the library's own encoding of what we save."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from apps.embeddings.model import EmbeddingModel, build_model, is_decoder, opened, sees_ahead
from apps.embeddings.pipeline import EmbeddingPipeline
from core.config.schema import AdapterConfig, ModelConfig
from core.errors import AppInputError, CheckpointError, ConfigError, DataError
from core.models.tokenizer import train_bpe

ROOT = Path(__file__).parents[3]
SIZES = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
TEXTS = ["a short text", "another one that is longer than the first", "x"]


def decoder(family: str, attention: str):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, attn_implementation=attention)
    return transformers.AutoModel.from_config(config, attn_implementation=attention).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Mistral", "Qwen3"])
def test_a_decoder_becomes_bidirectional(family, attention):
    model = decoder(family, attention)
    assert is_decoder(model)
    opened(model, True)
    assert sees_ahead(model) and not is_decoder(model)
    ids = torch.tensor([[3, 5, 7, 9]])
    states = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=states, use_cache=False).last_hidden_state[0, 0].sum().backward()
    assert states.grad[0, -1].abs().max() > 0


def test_a_decoder_that_stays_causal_sees_nothing_ahead():
    model = decoder("Llama", "sdpa")
    opened(model, False)
    assert is_decoder(model)


def pipeline(pooling: str = "latent", **config) -> EmbeddingPipeline:
    tokenizer = train_bpe(TEXTS * 20, 300)
    spec = ModelConfig(preset="tiny", edits=[{"kind": "embedding", "pooling": pooling, "latents": 6, "heads": 4}])
    model = build_model(spec, tokenizer, device="cpu", seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pooling" in name or parameter.ndim == 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return EmbeddingPipeline.from_model(model.eval(), tokenizer, **config)


@pytest.mark.parametrize("pooling", ["latent", "mean", "last"])
def test_folders_and_the_library_give_the_same_vectors(pooling, tmp_path):
    embed = pipeline(pooling, task="Find it")
    documents, queries = embed(TEXTS), embed(TEXTS, kind="query")
    assert documents.dtype == np.float32 and not np.allclose(documents, queries)
    np.testing.assert_allclose(np.linalg.norm(documents, axis=1), 1, rtol=1e-5)
    embed.save_pretrained(tmp_path / "model")
    again = EmbeddingPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert again.config.task == "Find it"
    np.testing.assert_allclose(again(TEXTS), documents, atol=1e-6)
    np.testing.assert_allclose(again(TEXTS, kind="query"), queries, atol=1e-6)
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(library.encode_document(TEXTS), documents, atol=1e-5)
    np.testing.assert_allclose(library.encode_query(TEXTS), queries, atol=1e-5)


def test_a_fresh_process_with_the_library_alone_opens_the_folder(tmp_path):
    embed = pipeline()
    embed.save_pretrained(tmp_path / "model")
    code = (
        "import sys; from sentence_transformers import SentenceTransformer;"
        f"m = SentenceTransformer({str(tmp_path / 'model')!r}, device='cpu', trust_remote_code=True);"
        f"print(' '.join(map(str, m.encode({TEXTS[0]!r}).tolist())))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.array(done.stdout.split(), dtype=np.float32)
    np.testing.assert_allclose(found, embed(TEXTS[0]), atol=1e-5)


def test_batch_order_and_company_change_nothing():
    embed = pipeline(batch_tokens=40)
    many = TEXTS * 5
    together = embed(many)
    for text, vector in zip(many, together):
        np.testing.assert_allclose(embed(text), vector, atol=1e-5)


def test_adapters_train_and_are_folded_in(tmp_path):
    from core.training.build import add_adapters

    embed = pipeline()
    model = add_adapters(embed.model, [AdapterConfig(r=2)], seed=0)
    assert isinstance(model, EmbeddingModel) and add_adapters(model, [AdapterConfig(r=2)]) is model
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("lora_A" in name for name in trained) and any("dictionary" in name for name in trained)
    assert not any("embed_tokens" in name for name in trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    expected = embed(TEXTS)
    embed.save_pretrained(tmp_path / "m")
    np.testing.assert_allclose(
        EmbeddingPipeline.from_pretrained(tmp_path / "m", device="cpu")(TEXTS), expected, atol=1e-5
    )


def test_bad_input_says_what():
    embed = pipeline()
    with pytest.raises(AppInputError, match=r"2 empty texts, rows \[1, 2\]"):
        embed(["a", "", "  "])
    with pytest.raises(AppInputError, match="unknown kind 'querry'"):
        embed(["a"], kind="querry")
    with pytest.raises(AppInputError, match="cannot embed int"):
        embed(3)
    with pytest.raises(AppInputError, match="999 dimensions"):
        EmbeddingPipeline.from_model(embed.model, embed.tokenizer, dimensions=999)(["a"])
    with pytest.raises(ConfigError, match="template"):
        EmbeddingPipeline.from_pretrained("any", engine="tiny", templat="nv")
    with pytest.raises(CheckpointError):
        EmbeddingPipeline.from_pretrained("./nowhere")
    with pytest.raises(DataError, match="dimensions"):
        embed.index(["a b", "c"]).search(np.ones((1, 3)))
    with pytest.raises(CheckpointError, match="not installed"):
        EmbeddingPipeline.from_pretrained("package:no-such-model")
    assert embed([]).shape == (0, embed.dimension)


def test_long_texts_are_cut_and_counted():
    embed = pipeline(max_length=8)
    long = "word " * 100
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than 8 tokens"):
        first = embed([long])[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert np.allclose(first, embed(["word " * 90])[0], atol=1e-6)
        embed([long, "x"])
    assert embed.truncated == 1


def test_search_finds_the_text_itself():
    embed = pipeline()
    index = embed.index({"a": TEXTS[0], "b": TEXTS[1], "c": TEXTS[2]})
    assert embed.search(TEXTS[1], 1, index=index)[0].id == "b"
    lexical = embed.index(TEXTS, structure="bm25")
    assert embed.search(["longer first"], 1, index=lexical)[0][0].id == "1"


def test_cut_dimensions_are_the_leading_ones():
    embed = pipeline()
    cut = EmbeddingPipeline.from_model(embed.model, embed.tokenizer, dimensions=8)(TEXTS)
    whole = embed(TEXTS)[:, :8]
    np.testing.assert_allclose(cut, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
