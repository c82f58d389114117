"""Decoders opened up, whole models through folders, and the library's own encoding of what we save."""

from __future__ import annotations

import json
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
from core.errors import AppInputError, BackendUnavailable, CheckpointError, ConfigError, DataError, UnsupportedError
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


def test_a_mixture_of_experts_becomes_bidirectional():
    """Its experts sum in another order when another token is routed: a difference that says nothing of attention."""
    model = decoder("Qwen3Moe", "sdpa")
    assert is_decoder(model) and not sees_ahead(model)
    opened(model, True)
    assert sees_ahead(model)


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


def library(folder: Path):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)


def assert_library_agrees(embed: EmbeddingPipeline, folder: Path) -> None:
    found = library(folder)
    for texts in (TEXTS, TEXTS[:1]):
        np.testing.assert_allclose(found.encode_document(texts), embed(texts), atol=1e-5)
        np.testing.assert_allclose(found.encode_query(texts), embed(texts, kind="query"), atol=1e-5)


def test_a_chat_template_makes_no_conversation_of_a_text(tmp_path):
    embed = pipeline()
    embed.tokenizer.chat_template = "{% for m in messages %}user: {{ m['content'] }} {% endfor %}"
    embed.save_pretrained(tmp_path / "m")
    assert_library_agrees(embed, tmp_path / "m")
    assert embed.tokenizer.chat_template


def test_a_causal_model_is_served_causal(tmp_path):
    spec = ModelConfig(preset="tiny", edits=[{"kind": "embedding", "pooling": "last", "bidirectional": False}])
    tokenizer = train_bpe(TEXTS * 20, 300)
    embed = EmbeddingPipeline.from_model(build_model(spec, tokenizer, device="cpu").eval(), tokenizer)
    embed.save_pretrained(tmp_path / "m")
    again = EmbeddingPipeline.from_pretrained(tmp_path / "m", device="cpu")
    assert is_decoder(again.model.encoder) and not sees_ahead(again.model.encoder)
    np.testing.assert_allclose(again(TEXTS), embed(TEXTS), atol=1e-6)
    # an edit says otherwise
    edited = ModelConfig(path=str(tmp_path / "m"), edits=[{"kind": "embedding", "bidirectional": True}])
    assert sees_ahead(build_model(edited, again.tokenizer, device="cpu").encoder)


def test_an_instruction_is_not_pooled_by_a_library_model_without_prompts(tmp_path):
    embed = pipeline("mean")
    embed.model.pooling.include_prompt = True
    embed.save_pretrained(tmp_path / "plain")
    told = EmbeddingPipeline.from_pretrained(tmp_path / "plain", device="cpu", task="Find it")
    told.save_pretrained(tmp_path / "told")
    assert_library_agrees(told, tmp_path / "told")


def test_a_library_model_keeps_its_own_prompts(tmp_path):
    embed = pipeline("mean")
    embed.model.pooling.include_prompt = True
    made = embed.model.to_sentence_transformer(embed.tokenizer, 64, {"query": "query: ", "document": "passage: "})
    made.save(str(tmp_path / "own"), create_model_card=False)
    own = EmbeddingPipeline.from_pretrained(tmp_path / "own", device="cpu")
    assert not np.allclose(own(TEXTS), own(TEXTS, kind="query")) and not np.allclose(own(TEXTS), embed(TEXTS))
    assert_library_agrees(own, tmp_path / "own")
    own.save_pretrained(tmp_path / "again")
    assert_library_agrees(own, tmp_path / "again")


def test_bits_are_served_and_saved_dense(tmp_path):
    from core.quantization.linear import QuantizedLinear

    pipeline().save_pretrained(tmp_path / "m")
    few = EmbeddingPipeline.from_pretrained(tmp_path / "m", device="cpu", quantization="graft:rtn:4")
    assert any(isinstance(module, QuantizedLinear) for module in few.model.encoder.modules())
    few.save_pretrained(tmp_path / "few")
    assert_library_agrees(few, tmp_path / "few")
    with pytest.raises(UnsupportedError, match="graft:nf4"):
        EmbeddingPipeline.from_pretrained(tmp_path / "m", device="cpu", quantization="nf4")


def test_padding_in_front_moves_nothing_in_the_library(tmp_path):
    tokenizer = train_bpe(TEXTS * 20, 300)
    tokenizer.padding_side = "left"
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    embed = EmbeddingPipeline.from_pretrained(tmp_path / "base", device="cpu")
    embed.save_pretrained(tmp_path / "m")
    assert_library_agrees(embed, tmp_path / "m")


@pytest.mark.parametrize(
    "kinds", [["Transformer"], ["Transformer", "Normalize"], ["Transformer", "Normalize", "Pooling"]]
)
def test_modules_in_another_order_are_refused(kinds, tmp_path):
    pipeline("mean").save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "modules.json"
    by_kind = {entry["type"].rpartition(".")[2]: entry for entry in json.loads(file.read_text())}
    file.write_text(json.dumps([by_kind[kind] for kind in kinds]))
    with pytest.raises(UnsupportedError, match="the model is made of " + ", ".join(kinds)):
        EmbeddingPipeline.from_pretrained(tmp_path / "m", device="cpu")


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
    for given, kind in ((None, "NoneType"), (3, "int"), ("\ud800", "half a character")):
        with pytest.raises(AppInputError, match=rf"1 inputs are no texts, rows \[1\]: {kind}"):
            embed(["a", given])
    with pytest.raises(AppInputError, match="unknown kind 'querry'"):
        embed(["a"], kind="querry")
    with pytest.raises(AppInputError, match="cannot embed int"):
        embed(3)
    with pytest.raises(AppInputError, match="999 dimensions"):
        EmbeddingPipeline.from_model(embed.model, embed.tokenizer, dimensions=999)
    for name in ("dimensions", "max_length", "batch_tokens"):
        with pytest.raises(ConfigError, match=name):
            EmbeddingPipeline.from_model(embed.model, embed.tokenizer, **{name: 0})
    for corpus in ("abc", None, iter(["a"])):
        with pytest.raises(AppInputError, match="cannot index"):
            embed.index(corpus)
    with pytest.raises(AppInputError, match="cannot search NoneType"):
        embed.search("a", index=None)
    with pytest.raises(DataError, match="no documents to search"):
        embed.predict([{"text": "q", "relevant": {"d": 1}}])
    shut = EmbeddingPipeline.from_model(embed.model, embed.tokenizer)
    shut.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        shut("a")
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


def test_documents_are_searched_whatever_instruction_they_carry():
    examples = [{"id": "d", "text": "a b", "task": "T"}, {"text": "q", "relevant": {"d": 1}, "task": "T"}]
    assert [name for name, _ in pipeline().predict(examples)[1]] == ["d"]


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
