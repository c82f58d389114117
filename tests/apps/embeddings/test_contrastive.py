"""Losses by hand and against the library; cached, chunked and distributed gradients against one big batch; batches."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from apps.embeddings.encode import Text, padded
from apps.embeddings.example import EmbeddingExample
from apps.embeddings.methods.contrastive import ContrastiveConfig, Row, encode_rows, rows_of, with_negatives
from apps.embeddings.mining import chosen_negatives, mine
from apps.embeddings.objective import Batch, cosent, info_nce, known_right, nested
from apps.embeddings.trainer import BatchOrder, ChunkCollator, Contrast, key_of, step, tokens_that_fit
from core.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]


def batch(b: int = 4, m: int = 2, d: int = 6, seed: int = 0, keys: torch.Tensor | None = None) -> Batch:
    torch.manual_seed(seed)
    q, p = (F.normalize(torch.randn(b, d, dtype=torch.double), dim=-1) for _ in range(2))
    n = F.normalize(torch.randn(b, m, d, dtype=torch.double), dim=-1)
    keys = torch.arange(b * (2 + m)).view(b, 2 + m) if keys is None else keys
    return Batch(q, p, n, keys[:, 0], keys[:, 1], keys[:, 2:], torch.linspace(0, 1, b, dtype=torch.double))


def test_info_nce_by_hand():
    data = batch()
    every = torch.cat([data.positives, data.negatives.flatten(0, 1)])
    total = 0.0
    for i in range(4):
        scores = [float(data.queries[i] @ document) / 0.1 for document in every]
        total += np.log(sum(np.exp(scores))) - scores[i]
    assert float(info_nce(data, temperature=0.1)) == pytest.approx(total / 4, abs=1e-10)
    own = 0.0
    for i in range(4):
        scores = [float(data.queries[i] @ d) / 0.1 for d in [data.positives[i], *data.negatives[i]]]
        own += np.log(sum(np.exp(scores))) - scores[0]
    assert float(info_nce(data, temperature=0.1, in_batch=False)) == pytest.approx(own / 4, abs=1e-10)


def test_info_nce_equals_the_library():
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    data = batch(8, 3)
    loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0)
    columns = [data.queries, data.positives, *data.negatives.unbind(1)]
    theirs = loss.compute_loss_from_embeddings(columns, None)
    assert float(info_nce(data, temperature=0.05)) == pytest.approx(float(theirs), abs=1e-9)


def test_equal_texts_are_no_negatives_of_each_other():
    keys = torch.tensor([[0, 100, 2, 3], [4, 100, 5, 6]])
    data = batch(2, 2, keys=keys)
    kept = torch.cat([data.positives[:1], data.negatives.flatten(0, 1)])
    scores = data.queries[0] @ kept.T / 0.05
    second = torch.cat([data.positives[1:], data.negatives.flatten(0, 1)])
    other = data.queries[1] @ second.T / 0.05
    wanted = (F.cross_entropy(scores[None], torch.tensor([0])) + F.cross_entropy(other[None], torch.tensor([0]))) / 2
    assert float(info_nce(data, temperature=0.05)) == pytest.approx(float(wanted))


def by_hand(data: Batch, left_out: dict[int, set[int]]) -> float:
    """The loss over all documents of a batch (its positives, then its negatives), without those left out by query."""
    every = torch.cat([data.positives, data.negatives.flatten(0, 1)])
    total = 0.0
    for i, query in enumerate(data.queries):
        kept = [float(query @ every[j]) / 0.05 for j in range(len(every)) if j not in left_out.get(i, set())]
        total += np.log(np.exp(kept).sum()) - float(query @ every[i]) / 0.05
    return total / len(data.queries)


def test_rows_of_equal_queries_are_no_negatives_of_each_other(monkeypatch):
    """Rows 0 and 2 ask the same, so the positive of each is right for both, also where row 1 has it as a negative."""
    keys = torch.tensor([[0, 100, 2, 3], [4, 101, 102, 6], [0, 102, 7, 100]])
    data = batch(3, 2, keys=keys)
    # documents: positives 0 1 2, then the negatives 3 4 | 5 6 | 7 8
    wanted = by_hand(data, {0: {2, 5, 8}, 2: {0, 5, 8}})
    for at_once in (1, 1 << 24):
        monkeypatch.setattr("apps.embeddings.objective.AT_ONCE", at_once)
        assert float(info_nce(data, temperature=0.05)) == pytest.approx(wanted, abs=1e-9)
    assert abs(wanted - by_hand(data, {})) > 1e-3
    own = Batch(*(part[2:] for part in (data.queries, data.positives, data.negatives)), *(k[2:] for k in (
        data.query_keys, data.positive_keys, data.negative_keys, data.scores)))  # fmt: skip
    assert float(info_nce(own, temperature=0.05, in_batch=False)) == pytest.approx(by_hand(own, {}))


def test_candidates_too_near_are_masked():
    data = batch()
    data.negatives[0, 0] = data.positives[0]
    plain, masked = (float(info_nce(data, in_batch=False, margin=m)) for m in (None, 1.0 - 1e-9))
    assert masked < plain


def test_cosent_by_hand_and_against_the_library():
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    data = batch(5, 0)
    s = (data.queries * data.positives).sum(1) / 0.05
    wrong = [float((s[i] - s[j]).exp()) for i in range(5) for j in range(5) if data.scores[i] < data.scores[j]]
    assert float(cosent(data)) == pytest.approx(np.log(1 + sum(wrong)), abs=1e-9)
    library = CoSENTLoss(torch.nn.Identity(), scale=20.0)
    theirs = library.compute_loss_from_embeddings([data.queries, data.positives], data.scores)
    assert float(cosent(data)) == pytest.approx(float(theirs), abs=1e-6)


def test_nested_is_the_mean_over_leading_dimensions():
    data = batch()
    cut = Batch(*(F.normalize(x[..., :3], dim=-1) for x in (data.queries, data.positives, data.negatives)),
                data.query_keys, data.positive_keys, data.negative_keys, data.scores)  # fmt: skip
    wanted = (info_nce(data) + info_nce(cut)) / 2
    assert float(nested(data, objective=info_nce, sizes=(3,))) == pytest.approx(float(wanted))


@pytest.mark.parametrize("size", [0, 999])
def test_nested_sizes_are_those_of_the_embeddings(size):
    with pytest.raises(ConfigError, match=rf"no leading \[{size}\]"):
        nested(batch(), objective=info_nce, sizes=(size,))


# ---- one step ------------------------------------------------------------------------------------------------------


class Tiny(torch.nn.Module):
    """Bag of words with dropout, as a stand-in for an encoder."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(3)
        self.table, self.dropout = torch.nn.Embedding(50, 12), torch.nn.Dropout(dropout)
        self.calls = 0

    def forward(self, input_ids, attention_mask, pool_mask):
        self.calls += 1
        states = self.dropout(torch.tanh(self.table(input_ids)))
        mean = (states * pool_mask[..., None]).sum(1) / pool_mask.sum(1, keepdim=True)
        return F.normalize(mean, dim=-1)


def contrasts(count: int = 12, m: int = 2, group: str = "g") -> list[Contrast]:
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        texts = tuple(Text(random.integers(0, 50, random.integers(2, 9)).tolist(), 1) for _ in range(2 + m))
        rows.append(Contrast(texts, tuple(range(number * 10, number * 10 + 2 + m)), group))
    return rows


def answered(count: int = 12) -> list[Contrast]:
    """Rows whose queries have one to three right answers, one of which is a negative of the next row."""
    rows = contrasts(count)
    return [
        replace(
            row,
            keys=(*row.keys[:3], rows[number - 1].keys[1] + 5),
            right=(*row.keys[:2], row.keys[1] + 5, *range(10_000, 10_000 + number // 6)),
        )
        for number, row in enumerate(rows)
    ]


def test_other_answers_of_a_query_are_left_out_of_a_cached_step():
    """The last negative of the next row is right for row i: the only one masked, in any number of chunks."""
    rows, count = answered(), 12
    module = Tiny().double()
    inputs = ChunkCollator(0, 10**9)(rows)
    (chunk,) = inputs["chunks"]
    with torch.no_grad():
        flat = torch.empty(count * 4, 12, dtype=torch.double)
        flat[chunk["index"]] = module(chunk["input_ids"], chunk["attention_mask"], chunk["pool_mask"])
    own, keys = flat.unflatten(0, (4, -1)).transpose(0, 1), inputs["keys"]
    data = Batch(own[:, 0], own[:, 1], own[:, 2:], keys[:, 0], keys[:, 1], keys[:, 2:], inputs["scores"])
    wanted = by_hand(data, {i: {count + 2 * ((i + 1) % count) + 1} for i in range(count)})
    assert abs(wanted - by_hand(data, {})) > 1e-3
    for tokens, keep in ((12, 0), (60, 100), (10**9, 10**9)):
        found = step(module, ChunkCollator(0, tokens)(rows), partial(info_nce, temperature=0.05), keep)
        assert float(found) == pytest.approx(wanted, abs=1e-6)


def one_big_batch(module: Tiny, rows: list[Contrast]) -> tuple[float, torch.Tensor]:
    inputs = ChunkCollator(0, 10**9)(rows)
    (chunk,) = inputs["chunks"]
    found = module(chunk["input_ids"], chunk["attention_mask"], chunk["pool_mask"])
    flat = torch.empty_like(found).index_copy(0, chunk["index"], found)
    own = flat.unflatten(0, (len(rows[0].texts), -1)).transpose(0, 1)
    keys = inputs["keys"]
    right = known_right(inputs["right"], keys[:, 1:]) if "right" in inputs else None
    parts = (own[:, 0], own[:, 1], own[:, 2:], keys[:, 0], keys[:, 1], keys[:, 2:], inputs["scores"], right)
    loss = info_nce(Batch(*parts))
    (gradient,) = torch.autograd.grad(loss, module.table.weight)
    return loss.item(), gradient


def shared(count=12):
    """Rows that draw their documents from four, one of which is a query as well."""
    rows = contrasts(count)
    pool = [(rows[0].texts[0], 77), *((row.texts[1], row.keys[1]) for row in rows[:3])]
    made = []
    for number, row in enumerate(rows):
        texts, keys = zip(*(pool[(number + i) % 4] for i in range(3)))
        made.append(replace(row, texts=(row.texts[0], *texts), keys=(row.keys[0], *keys)))
    return made


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("keep", [0, 10**9])
def test_a_document_of_several_rows_is_encoded_once(keep, in_batch):
    """With the loss and the gradient of one that is encoded for each row."""
    module, rows = Tiny(), shared()
    inputs = ChunkCollator(0, 40)(rows)
    assert sum(len(chunk["index"]) for chunk in inputs["chunks"]) == 12 + 4, "a query is never one with a document"
    assert inputs["useful"] == sum(int(chunk["attention_mask"].sum()) for chunk in inputs["chunks"])
    alone = [[module(**_fed(padded([text], 0)))[0] for text in row.texts] for row in rows]
    own = torch.stack([torch.stack(row) for row in alone])
    keys = inputs["keys"]
    batch = Batch(own[:, 0], own[:, 1], own[:, 2:], keys[:, 0], keys[:, 1], keys[:, 2:], inputs["scores"])
    objective = partial(info_nce, temperature=0.05, in_batch=in_batch)
    wanted = objective(batch)
    (gradient,) = torch.autograd.grad(wanted, module.table.weight)
    assert float(step(module, inputs, objective, keep)) == pytest.approx(wanted.item(), abs=1e-6)
    torch.testing.assert_close(module.table.weight.grad, gradient, rtol=1e-4, atol=1e-6)


def _fed(chunk):
    return {name: chunk[name] for name in ("input_ids", "attention_mask", "pool_mask")}


@pytest.mark.parametrize("keep", [0, 100, 10**9])
@pytest.mark.parametrize("chunk", [12, 60])
def test_a_cached_step_is_one_big_batch(chunk, keep):
    module, rows = Tiny(), contrasts()
    wanted, gradient = one_big_batch(module, rows)
    found = step(module, ChunkCollator(0, chunk)(rows), info_nce, keep)
    assert float(found) == pytest.approx(wanted, abs=1e-6)
    torch.testing.assert_close(module.table.weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_second_encoding_draws_the_same_dropout():
    rows = contrasts()
    collated = ChunkCollator(0, 30)(rows)
    gradients = []
    for keep in (10**9, 0):
        module = Tiny(dropout=0.5)
        torch.manual_seed(7)
        step(module, collated, info_nce, keep)
        gradients.append(module.table.weight.grad)
        assert module.calls == len(collated["chunks"]) * (1 if keep else 2)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "free, reserved, allocated, share, usable",
    [(60, 20, 8, 1.0, 72), (60, 20, 8, 0.25, 12), (4, 6, 6, 1.0, 4), (4, 16, 6, 0.5, 14)],
)
def test_what_is_kept_is_half_of_a_processs_own_share(monkeypatch, free, reserved, allocated, share, usable):
    gib = 2**30
    for name, value in {
        "mem_get_info": (free * gib, 80 * gib),
        "memory_reserved": reserved * gib,
        "memory_allocated": allocated * gib,
        "get_per_process_memory_fraction": share,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, value=value: value)
    config = SimpleNamespace(num_hidden_layers=2, hidden_size=64, intermediate_size=128)
    a_token = 2 * (14 * 64 + 3 * 128) * 4
    found = tokens_that_fit(SimpleNamespace(config=config), torch.device("cuda"))
    assert found == usable * gib // 2 // a_token


@pytest.mark.parametrize("make", [contrasts, answered])
def test_two_processes_are_one(tmp_path, make):
    """Also where what is right for a query stands with the other process, which knows queries of more answers."""
    module, rows = Tiny(), make()
    wanted, gradient = one_big_batch(module, rows)
    script = tmp_path / "two.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "from tests.apps.embeddings.test_contrastive import Tiny, contrasts, answered, ChunkCollator, step, info_nce\n"
        f"rank, rows, module = dist.get_rank(), {make.__name__}(), Tiny()\n"
        "inputs = ChunkCollator(0, 40)(rows[rank * 6 : rank * 6 + 6])\n"
        "loss = step(module, inputs, info_nce, 100)\n"
        f"torch.save((loss, module.table.weight.grad), r'{tmp_path}/' + str(rank))\n"
        "dist.barrier(); dist.destroy_process_group()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        loss, found = torch.load(tmp_path / str(rank))
        assert float(loss) == pytest.approx(wanted, abs=1e-6)
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


# ---- batches and rows ----------------------------------------------------------------------------------------------


def test_batches_are_of_one_group_and_hold_no_text_twice():
    rows = contrasts(20, group="a") + contrasts(20, group="b")
    rows = [Contrast(r.texts, (i, 1000 + i if i % 3 else 7, 0, 0), r.group) for i, r in enumerate(rows)]
    order = BatchOrder(rows, 4, seed=0, distinct=True)
    for epoch in range(3):
        order.set_epoch(epoch)
        numbers = list(order)
        assert len(numbers) == len(order)
        for start in range(0, len(numbers), 4):
            part = [rows[i] for i in numbers[start : start + 4]]
            assert len({row.group for row in part}) == 1
            assert sum(row.keys[1] == 7 for row in part) <= 1
    again = BatchOrder(rows, 4, seed=0, distinct=True)
    again.set_epoch(2)
    assert list(again) == numbers
    with pytest.raises(DataError, match="no group of rows fills a batch of 64"):
        BatchOrder(rows, 64, seed=0, distinct=True)


def test_rows_of_every_kind():
    examples = [
        EmbeddingExample("q", pos=("p1", "p2"), neg=("n",), task="t"),
        EmbeddingExample("a", text2="b", score=0.9, task="sts"),
        EmbeddingExample("a", text2="c", score=0.2, task="sts"),
        *[EmbeddingExample(f"{label}{i}", label=label, task="cls") for label in "xy" for i in range(4)],
    ]
    rows = rows_of(examples, similar=0.8, seed=0)
    assert [(r.query, r.positive) for r in rows if r.task == "t"] == [("q", "p1"), ("q", "p2")]
    assert [(r.query, r.positive, r.both) for r in rows if r.task == "sts"] == [("a", "b", True)]
    classes = [r for r in rows if r.task == "cls"]
    assert len(classes) == 8
    for row in classes:
        assert row.query[0] == row.positive[0] and row.query != row.positive
        assert all(text[0] != row.query[0] for text in row.negatives)
    with pytest.raises(DataError, match="one class alone"):
        rows_of([EmbeddingExample("a", label="x")], 0.8, 0)
    with pytest.raises(DataError, match="no example says"):
        rows_of([EmbeddingExample("a")], 0.8, 0)


class Recipe:
    seed = 0


class Context:
    recipe = Recipe()


@pytest.mark.parametrize("who", ["none", "bm25"])
def test_every_row_gets_its_negatives_and_never_its_answer(who):
    rows = [Row(f"question {i}", f"answer number {i}", (), "t", "t") for i in range(20)]
    rows.append(Row("question 0", "answer number 1", (), "t", "t"))
    found = with_negatives(rows, ContrastiveConfig(negatives=4, mine=who), Context, needed=True)
    for row in found:
        assert len(row.negatives) == 4 and row.positive not in row.negatives
    assert not {"answer number 0", "answer number 1"} & set(found[0].negatives)


def test_what_is_right_for_a_query_goes_with_each_of_its_rows():
    from apps.embeddings.encode import with_ending
    from core.models.tokenizer import train_bpe

    tokenizer = with_ending(train_bpe(["a few words to cut"] * 9, 300))
    rows = [
        Row("q", "p1", ("n",), "t", "t"),
        Row("r", "p3", ("p2",), "t", "t"),
        Row("q", "p2", ("n",), "t", "t"),
        Row("q", "p4", ("n",), "u", "u"),
        Row("a", "b", ("n",), "v", "v", True),
    ]
    data, _ = encode_rows(rows, tokenizer, template="lines", mode="offsets", max_length=32)
    wanted = [{"q", "p1", "p2"}, {"r", "p3"}, {"q", "p1", "p2"}, {"q", "p4"}, {"a", "b"}]
    assert [set(row.right) for row in data] == [set(map(key_of, texts)) for texts in wanted]
    pairs = [*rows[-1:], Row("b", "c", ("n",), "v", "v", True)]
    data, _ = encode_rows(pairs, tokenizer, template="lines", mode="offsets", max_length=32)
    assert set(data[1].right) == set(map(key_of, "abc")), "texts of one kind answer each other"


def test_a_teacher_reads_the_instruction_and_is_closed(monkeypatch):
    class Teacher:
        asked, closed = set(), False

        def __call__(self, texts, *, kind, task):
            self.asked.add((kind, task))
            return np.random.default_rng(len(texts)).normal(size=(len(texts), 8))

        def close(self):
            self.closed = True

    teacher = Teacher()
    monkeypatch.setattr("apps.embeddings.methods.contrastive._teacher", lambda path: teacher)
    rows = [Row(f"question {i}", f"answer {i}", (), "find it", "find it") for i in range(6)]
    found = with_negatives(rows, ContrastiveConfig(negatives=2, mine="a folder"), Context, needed=True)
    assert all(len(row.negatives) == 2 for row in found)
    assert teacher.asked == {("query", "find it"), ("document", "find it")} and teacher.closed


def test_the_instruction_is_encoded_before_queries_and_not_pooled():
    from apps.embeddings.encode import with_ending
    from core.models.tokenizer import train_bpe

    tokenizer = with_ending(train_bpe(["Instruct: find it Query: what is this"] * 9, 300))
    rows = [Row("what is this", "it is", ("is",), "find it", "g")]
    data, stats = encode_rows(rows, tokenizer, template="lines", mode="offsets", max_length=64)
    query, positive, negative = data[0].texts
    assert tokenizer.decode(query.ids[query.prompt : -1]) == "what is this"
    assert tokenizer.decode(query.ids[: query.prompt]) == "Instruct: find it\nQuery:\n"
    assert positive.prompt == negative.prompt == 0
    assert {query.ids[-1], positive.ids[-1]} == {tokenizer.eos_token_id}
    assert data[0].keys == tuple(map(key_of, ("what is this", "it is", "is"))) and stats.rows == 1


# ---- mining --------------------------------------------------------------------------------------------------------


def test_mined_negatives_stay_below_the_positive():
    candidates = np.array([[0, 1, 2, 3, -1]])
    scores = np.array([[0.99, 0.97, 0.90, 0.5, -np.inf]])
    found = chosen_negatives(candidates, scores, [{0}], np.array([0.99]), count=2, margin=0.05)
    assert found.negatives == [[2, 3]] and found.too_near == 1 and found.short == 0
    assert chosen_negatives(candidates, scores, [{0}], np.array([0.99]), count=3, margin=None).negatives == [[1, 2, 3]]


def test_mining_equals_the_library(tmp_path):
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    random = np.random.default_rng(0)
    documents = [f"d{i}" for i in range(150)]
    queries = [f"q{i}" for i in range(25)]
    vectors = {text: random.normal(size=8).astype(np.float32) for text in [*documents, *queries]}
    for i, query in enumerate(queries):
        vectors[query] += 2 * vectors[documents[i]]

    def teacher(texts, kind):
        return np.stack([vectors[t] for t in texts])

    class Library:
        device = "cpu"
        prompts: dict = {}

        def encode(self, texts, **kwargs):
            found = torch.tensor(teacher(list(texts), ""))
            return F.normalize(found, dim=-1)

        encode_query = encode_document = encode

        def similarity(self, a, b):
            return a @ b.T

        def similarity_pairwise(self, a, b):
            return (a * b).sum(1)

    data = Dataset.from_dict({"anchor": queries, "positive": documents[:25]})
    made = mine_hard_negatives(
        data, Library(), corpus=documents, num_negatives=5, relative_margin=0.05, output_format="n-tuple", verbose=False
    )
    theirs = {row["anchor"]: [row[f"negative_{i}"] for i in range(1, 6)] for row in made}
    ours = mine(queries, documents, [[i] for i in range(25)], teacher=teacher, count=5, margin=0.05, depth=51)
    found = {q: [documents[i] for i in numbers] for q, numbers in zip(queries, ours.negatives) if len(numbers) == 5}
    assert found == theirs and len(found) > 20
