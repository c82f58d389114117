"""Two-stage contrastive instruction tuning (Lee et al. 2024, NV-Embed) and graded pairs (Su 2022, CoSENT).

`embeddings.stage1` trains on search data: every document of the batch is a candidate. `embeddings.stage2` mixes in
classes and pairs, where texts of a batch may share a class: a query sees its own positive and negatives alone.
`embeddings.graded` orders pairs by their similarity score. Instructions stand before queries and are not pooled. This
file knows how examples become rows; the arithmetic is `objective`'s, the step is `trainer`'s.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.embeddings import prompts
from apps.embeddings.example import EmbeddingExample
from core.config.limits import CONTRASTIVE
from core.config.registry import method
from core.config.schema import key
from core.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext

MINERS = ("none", "bm25")


@dataclass(frozen=True)
class ContrastiveConfig:
    """Options of `embeddings.stage1` and `embeddings.stage2`."""

    template: str = key("lines", "how an instruction becomes a prompt", one_of=prompts.TEMPLATES)
    temperature: float = key(0.02, "of the softmax over candidates", above=0)
    negatives: int = key(7, "negatives of each query", least=0)
    mine: str = key("none", "who finds negatives that rows lack: none (by chance), bm25, or a model's path")
    margin: float = key(0.05, "a mined negative scores below the positive by this share", least=0, most=1)
    mask: float | None = key(None, "candidates above this share of the positive's score are left out of the loss")
    similar: float = key(0.8, "graded pairs from this score on are positives", least=0, most=1)
    apart: float = key(0.0, "training examples this like a held-out one are left out; 0 keeps all", least=0, most=1)
    matryoshka: list[int] = key([], "leading dimensions on which the loss is taken as well", least=1)
    chunk_tokens: int = key(0, "padded tokens encoded at once; 0 by memory", least=0)
    keep_tokens: int = key(0, "padded tokens encoded once; more are encoded twice; 0 by memory", least=0)


@dataclass(frozen=True)
class GradedConfig:
    """Options of `embeddings.graded`."""

    template: str = key("lines", "how an instruction becomes a prompt", one_of=prompts.TEMPLATES)
    temperature: float = key(0.05, "scale of similarity differences", above=0)
    apart: float = key(0.0, "training examples this like a held-out one are left out; 0 keeps all", least=0, most=1)
    matryoshka: list[int] = key([], "leading dimensions on which the loss is taken as well", least=1)
    chunk_tokens: int = key(0, "padded tokens encoded at once; 0 by memory", least=0)
    keep_tokens: int = key(0, "padded tokens encoded once; more are encoded twice; 0 by memory", least=0)


@dataclass(frozen=True)
class Row:
    """Texts of one row. `both`: the instruction stands before the documents as well (texts of one kind)."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    task: str
    group: str
    both: bool = False
    score: float = 1.0


NOTHING_NEAR = ("no example says what a text should be near to", "give pos, similar pairs or labels")
NO_SCORES = ("embeddings.graded needs pairs with a score", "use the sts reader")


def look(examples: Sequence[EmbeddingExample], recipe: Any, options: ContrastiveConfig) -> None:
    """Raises where no example has something near, or the model that mines negatives is not there."""
    if not any(_says_near(example, options.similar) for example in examples):
        raise DataError(NOTHING_NEAR[0], hint=NOTHING_NEAR[1])
    # a model's path or id has a /
    if options.mine not in MINERS and "/" not in options.mine and not Path(options.mine).is_dir():
        near = nearest(options.mine, MINERS)
        raise ConfigError(f"nobody called '{options.mine}' mines negatives", where="with.mine",
                          hint=" ".join(filter(None, [near, "none, bm25, or the path of a model"])))  # fmt: skip


def look_graded(examples: Sequence[EmbeddingExample], recipe: Any, options: GradedConfig) -> None:
    """Raises where no pair has a score."""
    if not any(example.text2 is not None and example.score is not None for example in examples):
        raise DataError(NO_SCORES[0], field="score", hint=NO_SCORES[1])


def _says_near(example: EmbeddingExample, similar: float) -> bool:
    if example.kind == "pair":
        return example.score is None or example.score >= similar
    return example.kind in ("triplet", "labelled")


@method("embeddings.stage1", config=ContrastiveConfig, limits=CONTRASTIVE, look=look)
def stage1(ctx: StageContext) -> Stage:
    """Search data, every document of the batch a candidate."""
    return _contrastive(ctx, in_batch=True)


@method("embeddings.stage2", config=ContrastiveConfig, limits=CONTRASTIVE, look=look)
def stage2(ctx: StageContext) -> Stage:
    """All kinds of data, own candidates only."""
    return _contrastive(ctx, in_batch=False)


@method("embeddings.graded", config=GradedConfig, limits=CONTRASTIVE, look=look_graded)
def graded(ctx: StageContext) -> Stage:
    """Pairs with scores, ordered by them."""
    from apps.embeddings.objective import cosent

    rows = [
        Row(e.text, e.text2, (), e.task, e.task, True, e.score)
        for e in _clean(ctx)
        if e.text2 is not None and e.score is not None
    ]
    if not rows:
        raise DataError(NO_SCORES[0], field="score", hint=NO_SCORES[1])
    return _stage(ctx, rows, partial(cosent, temperature=ctx.options.temperature), distinct=False)


def _contrastive(ctx: StageContext, in_batch: bool) -> Stage:
    from apps.embeddings.objective import info_nce

    options = ctx.options
    rows = with_negatives(rows_of(_clean(ctx), options.similar, ctx.recipe.seed), options, ctx, needed=not in_batch)
    loss = partial(info_nce, temperature=options.temperature, in_batch=in_batch, margin=options.mask)
    return _stage(ctx, rows, loss, distinct=in_batch)


def _clean(ctx: StageContext) -> Sequence[EmbeddingExample]:
    """The training examples that repeat no held-out one."""
    if not ctx.options.apart:
        return ctx.train
    from apps.embeddings.apart import apart
    from core.training.callbacks import say

    kept = apart(ctx.train, ctx.eval, ctx.options.apart)
    count, left = len(ctx.train), len(ctx.train) - len(kept)
    if left and ctx.run is not None:
        said = "are left out" if kept else "stay: training and held-out data are the same, figures say nothing"
        say(ctx.run, f"{left} of {count} examples repeat held-out ones and {said}")
    return kept or ctx.train


def _stage(ctx: StageContext, rows: list[Row], objective: Any, distinct: bool) -> Stage:
    from apps.embeddings.objective import nested
    from apps.embeddings.trainer import ContrastiveTrainer
    from core.training.stage import Stage

    if ctx.options.matryoshka:
        objective = partial(nested, objective=objective, sizes=tuple(ctx.options.matryoshka))
    return Stage(
        rows=rows,
        encoder=partial(encode_rows, template=ctx.options.template),
        trainer=ContrastiveTrainer,
        trainer_options={
            "objective": objective,
            "batch": ctx.recipe.train.batch.size,
            "distinct": distinct,
            "pad": ctx.tokenizer.pad_token_id or 0,
            "chunk_tokens": ctx.options.chunk_tokens,
            "keep_tokens": ctx.options.keep_tokens,
        },
    )


def rows_of(examples: Iterable[EmbeddingExample], similar: float, seed: int) -> list[Row]:
    """Rows of all kinds of examples: every positive of a triplet, similar pairs, texts with another of a class."""
    rows, classes = [], defaultdict(lambda: defaultdict(list))
    for example in examples:
        if example.kind == "triplet":
            rows += [Row(example.text, text, example.neg, example.task, example.task) for text in example.pos]
        elif example.kind == "pair" and _says_near(example, similar):
            rows.append(Row(example.text, example.text2 or "", (), example.task, example.task, True))
        elif example.kind == "labelled":
            classes[example.task][example.label].append(example.text)
    chance = random.Random(seed)
    for task, groups in classes.items():
        if len(groups) < 2:
            raise DataError("texts of one class alone teach no difference", field="label", got=list(groups))
        everything = [(label, text) for label, texts in groups.items() for text in texts]
        for label, texts in groups.items():
            for place, text in enumerate(texts):
                if len(texts) > 1:
                    other = texts[(place + chance.randrange(1, len(texts))) % len(texts)]
                    rows.append(Row(text, other, _strangers(label, everything, chance), task, task, True))
    if not rows:
        raise DataError(NOTHING_NEAR[0], hint=NOTHING_NEAR[1])
    return rows


def _strangers(label: str | None, everything: list[tuple[Any, str]], chance: random.Random) -> tuple[str, ...]:
    """Sixteen texts of other classes."""
    found: list[str] = []
    while len(found) < 16:
        other, text = everything[chance.randrange(len(everything))]
        if other != label:
            found.append(text)
    return tuple(found)


def with_negatives(rows: list[Row], options: ContrastiveConfig, ctx: Any, needed: bool) -> list[Row]:
    """Rows with `options.negatives` negatives each: their own first, then mined ones, then others of the group."""
    count = options.negatives
    if count == 0:
        if needed:
            raise DataError("without in-batch negatives a row needs its own", field="with.negatives", got=0)
        return [replace(row, negatives=()) for row in rows]
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row.group].append(number)
    chance, done = random.Random(ctx.recipe.seed), list(rows)
    teacher = _teacher(options.mine) if options.mine not in MINERS else None
    for numbers in groups.values():
        own = [rows[i] for i in numbers]
        if options.mine != "none":
            own = _mined(own, options, teacher)
        pool = sorted({text for row in own for text in (row.positive, *row.negatives)})
        answers = answers_of(own)
        for number, row in zip(numbers, own):
            done[number] = replace(row, negatives=_filled(row, pool, answers[row.query], count, needed, chance))
    if teacher is not None:
        teacher.close()
    return done


def answers_of(rows: Iterable[Row]) -> dict[str, set[str]]:
    """Query → what is right for it in any of these rows of one group; texts of one kind answer each other."""
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[row.query].add(row.positive)
        if row.both:
            answers[row.positive].add(row.query)
    return answers


def _filled(
    row: Row, pool: list[str], right: set[str], count: int, needed: bool, chance: random.Random
) -> tuple[str, ...]:
    found = list(dict.fromkeys(text for text in row.negatives if text not in right))[:count]
    for _ in range(20 * count):
        if len(found) == count:
            break
        text = pool[chance.randrange(len(pool))]
        if text not in right and text != row.query and text not in found:
            found.append(text)
    if not found and needed:
        raise DataError("a row has no negatives, and its group offers none", got=row.query)
    while len(found) < count:
        found.append(found[len(found) % max(1, len(found))] if found else row.positive)
    return tuple(found)


def _mined(own: list[Row], options: ContrastiveConfig, teacher: Any) -> list[Row]:
    from apps.embeddings.mining import mine

    documents = sorted({text for row in own for text in (row.positive, *row.negatives)})
    place = {text: number for number, text in enumerate(documents)}
    answers: dict[str, set[int]] = defaultdict(set)
    for row in own:
        answers[row.query].add(place[row.positive])
        if row.both and row.query in place:
            answers[row.query].add(place[row.query])
    # Texts of one class are known by the strangers they were given: what is no stranger is never mined.
    found = mine(
        [row.query for row in own],
        documents,
        [[place[row.positive]] for row in own],
        excluded=[answers[row.query] for row in own],
        teacher=None if teacher is None else partial(_encoded, teacher, own[0].task),
        count=options.negatives,
        margin=options.margin,
    )
    mined = [tuple(documents[i] for i in numbers) for numbers in found.negatives]
    return [
        row if row.both and row.negatives else replace(row, negatives=(*row.negatives, *extra))
        for row, extra in zip(own, mined)
    ]


def _encoded(teacher: Any, task: str, texts: Sequence[str], kind: str) -> Any:
    """Vectors of the teacher, whose queries carry the instruction of their source, or its own where there is none."""
    return teacher(list(texts), kind=kind, task=task or None)


def _teacher(path: str) -> Any:
    from apps.embeddings.pipeline import EmbeddingPipeline

    return EmbeddingPipeline.from_pretrained(path)


def encode_rows(rows: Sequence[Row], tokenizer: Any, *, template: str, mode: str, max_length: int) -> tuple[Any, Any]:
    """Rows as ids. The prompt stands before queries, and before documents of rows that say `both`."""
    from apps.embeddings.encode import encode_texts
    from apps.embeddings.trainer import Contrast, ContrastDataset, key_of
    from core.data.encode import EncodeStats

    columns = [[row.query, row.positive, *row.negatives] for row in rows]
    width = min((len(texts) for texts in columns), default=0)
    flat, given = [], []
    for row, texts in zip(rows, columns):
        prompt = prompts.prompt_of(template, row.task)
        flat += texts[:width]
        given += [prompt, *[prompt if row.both else ""] * (width - 1)]
    # A document stands in many rows and is encoded once.
    places = {pair: place for place, pair in enumerate(dict.fromkeys(zip(flat, given)))}
    said, before = zip(*places) if places else ((), ())
    once = encode_texts(tokenizer, said, before, max_length)
    encoded = [once[places[pair]] for pair in zip(flat, given)]
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    right = {
        (group, query): tuple(sorted(map(key_of, texts | {query})))
        for group, own in groups.items()
        for query, texts in answers_of(own).items()
    }
    made = []
    for number, row in enumerate(rows):
        part = slice(number * width, (number + 1) * width)
        keys = tuple(map(key_of, flat[part]))
        made.append(Contrast(tuple(encoded[part]), keys, row.group, row.score, right[row.group, row.query]))
    tokens = sum(len(text.ids) for text in encoded)
    stats = EncodeStats(rows=len(rows), cut_rows=sum(text.cut for text in encoded), tokens=tokens, trained=tokens)
    return ContrastDataset(made), stats
