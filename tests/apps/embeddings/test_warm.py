"""The warm-up: whose state tells a hidden token, on which texts, and that telling is learnt; and the chain it opens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from apps.embeddings import EmbeddingExample
from apps.embeddings.methods.warm import texts_of, told
from core.config.load import load_recipe
from core.config.run_folder import RunFolder
from core.training.run import train


class Given(nn.Module):
    """States by table: the state of a token is its row of the vocabulary, scaled."""

    def __init__(self, decoder: bool) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.eye(5))
        self.encoder = self
        self.config = type("Config", (), {"is_causal": False} if decoder else {})()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return 9.0 * self.table(ids)


@pytest.mark.parametrize(("decoder", "reading"), [(True, 3), (False, 2)])
def test_a_decoder_tells_from_the_state_before_an_encoder_from_its_own(decoder, reading):
    # Token 4 at place 2 is hidden by token 2; the state before it is that of token 3.
    ids, labels = torch.tensor([[1, 3, 2, 0]]), torch.tensor([[-100, -100, 4, -100]])
    total, count = told(Given(decoder), ids, torch.ones_like(ids), labels)
    scores = [9.0 if token == reading else 0.0 for token in range(5)]
    assert float(total) == pytest.approx(math.log(sum(map(math.exp, scores))) - scores[4], abs=1e-5)
    assert int(count) == 1


def test_every_text_once_whatever_its_kind():
    examples = [
        EmbeddingExample("q", pos=("p",), neg=("n", "q")),
        EmbeddingExample("a", text2="b", score=0.5),
        EmbeddingExample("p", label="x"),
    ]
    assert texts_of(examples) == ["q", "p", "n", "a", "b"]


def test_hidden_tokens_are_learnt_and_the_chain_goes_on(tmp_path):
    body = tmp_path / "recipe.yaml"
    body.write_text(
        "version: 1\napp: embeddings\nseed: 1\n"
        f"output: {tmp_path}/run\n"
        "model: {preset: tiny, tokenizer: 'bpe:400', edits: [{kind: embedding, pooling: mean}]}\n"
        "data: {train: [{reader: embedded}], eval: [{reader: embedded, split: test}], max_length: 40}\n"
        "stages:\n"
        "  - {name: warm, method: embeddings.warm, with: {share: 0.2}, train: {max_steps: 60, lr: 3e-3}}\n"
        "  - {name: pairs, method: embeddings.stage1, with: {negatives: 1, temperature: 0.1}, train: {max_steps: 3}}\n"
        "train: {batch: {size: 16}}\neval: {metrics: [ndcg@10], every: 0, retention: false}\n"
    )
    loaded = load_recipe(body)
    run = RunFolder.create(loaded)
    warm, pairs = train(loaded, run)["stages"]
    assert warm["final_loss"] < 0.8 * math.log(400), warm["final_loss"]
    assert pairs["status"] == "done" and pairs["tokens_seen"] > 0 and warm["tokens_seen"] > 0
