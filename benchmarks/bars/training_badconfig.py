"""200 recipes with one mistake each: all are refused in two seconds, with the place and, for a slip, the nearest word.

The mistakes are made by rule from the schema itself (every key misspelt, every type wrong, every bound crossed, every
choice mistyped), and by hand for names, contradictions, YAML and data. Each goes through `graft check` as a user
runs it, in a process of its own. The baseline is a plain YAML loader, which accepts what it can read.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import subprocess
import sys
import time
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.bar import ROOT, Bar, Measured, Setting

LIMIT, COUNT = 2.0, 200
BASE: dict[str, Any] = {
    "app": "translation",
    "model": {"path": "embedded"},
    "data": {"train": [{"reader": "embedded", "limit": 8, "with": {"src": "de", "tgt": "en"}}]},
    "method": "translation.parallel",
}


@dataclass(frozen=True)
class Case:
    """A recipe with a mistake.

    Args:
        text: of the recipe. says: words that the message must hold, among them the place and the nearest word.
    """

    name: str
    text: str
    says: tuple[str, ...]
    overrides: tuple[str, ...] = ()


def changed(path: tuple[Any, ...], value: Any, drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """The base recipe with `value` at `path`."""
    import copy

    recipe: Any = {name: block for name, block in copy.deepcopy(BASE).items() if name not in drop}
    target = recipe
    for step in path[:-1]:
        target = target[step] if isinstance(step, int) else target.setdefault(step, {})
    target[path[-1]] = value
    return recipe


def written(recipe: dict[str, Any]) -> str:
    return yaml.safe_dump(recipe, sort_keys=False)


def line_of(text: str, path: tuple[Any, ...]) -> str:
    """A colon and the number of the line that holds the key at `path`; the model's block comes before all others."""
    lines = [line.strip().lstrip("- ") for line in text.splitlines()]
    found = [number for number, line in enumerate(lines, 1) if line.startswith(f"{path[-1]}:")]
    return f":{found[0] if path[0] == 'model' else found[-1]}"


def fields() -> list[tuple[tuple[Any, ...], Any, Any]]:
    """(path, field, type) of every key of a recipe."""
    from core.config.schema import AdapterConfig, Recipe, SourceConfig

    found = []

    def walk(cls: Any, path: tuple[Any, ...]) -> None:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            own = (*path, field.name.rstrip("_"))
            if dataclasses.is_dataclass(hints[field.name]):
                walk(hints[field.name], own)
            else:
                found.append((own, field, hints[field.name]))

    walk(Recipe, ())
    for cls, path in ((SourceConfig, ("data", "train", 0)), (AdapterConfig, ("model", "adapters", 0))):
        hints = typing.get_type_hints(cls)
        found += [((*path, f.name.rstrip("_")), f, hints[f.name]) for f in dataclasses.fields(cls)]
    return found


def cases() -> list[Case]:
    """The 200 of all that are made, the hand-made ones first."""
    rng = random.Random(5)
    made = [*_slips(rng), *_types(), *_bounds(), *_choices()]
    rng.shuffle(made)
    by_hand = [*_names(), *_contradictions(), *_syntax(), *_data(), *_overrides()]
    return [*by_hand, *made][:COUNT]


def _with_adapter(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    if path[:2] != ("model", "adapters") or len(path) == 2:
        return changed(path, value)
    recipe = changed(("model", "adapters"), [{"kind": "lora"}])
    recipe["model"]["adapters"][0][path[-1]] = value
    return recipe


def _slips(rng: random.Random) -> list[Case]:
    """Every key with a letter missing, doubled or swapped."""
    found = []
    names = [path[-1] for path, _, _ in fields()]
    for path, _, _ in fields():
        key = path[-1]
        if len(key) < 4:
            continue
        at = rng.randrange(1, len(key) - 1)
        missing, doubled = key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:]
        swapped = key[: at - 1] + key[at] + key[at - 1] + key[at + 1 :]
        slip = rng.choice([missing, doubled, swapped])
        if slip in names or slip == key:
            slip = key + key[-1]
        text = written(_with_adapter((*path[:-1], slip), 1))
        found.append(
            Case(f"key {'.'.join(map(str, path))}", text, (f"'{slip}'", line_of(text, (path[0], slip)), f"'{key}'"))
        )
    return found


def _types() -> list[Case]:
    found = []
    for path, _, kind in fields():
        shown = str(kind)
        if kind in (int, float, bool):
            value: Any = "many"
        elif kind is str or shown.startswith(("list", "dict")):
            value = 3.5
        else:
            continue
        text = written(_with_adapter(path, value))
        found.append(Case(f"type {'.'.join(map(str, path))}", text, ("expected", line_of(text, path))))
    return found


def _bounds() -> list[Case]:
    found = []
    for path, field, _ in fields():
        for bound, value in (("least", -1), ("most", 10), ("above", 0)):
            if bound in field.metadata and not (bound == "least" and field.metadata["least"] < 0):
                wrong = value if bound != "least" else field.metadata["least"] - 1
                text = written(_with_adapter(path, wrong))
                words = ("expected a number", line_of(text, path))
                found.append(Case(f"{bound} {'.'.join(map(str, path))}", text, words))
    return found


def _choices() -> list[Case]:
    found = []
    for path, _, kind in fields():
        if typing.get_origin(kind) is Literal and all(isinstance(choice, str) for choice in typing.get_args(kind)):
            choice = max(typing.get_args(kind), key=len)
            text = written(_with_adapter(path, choice[:-1]))
            words = (f"'{choice}'", line_of(text, path))
            found.append(Case(f"choice {'.'.join(map(str, path))}", text, words))
    return found


def _names() -> list[Case]:
    def named(name: str, path: tuple[Any, ...], value: Any, *says: str) -> Case:
        return Case(name, written(changed(path, value)), says)

    lora = {"kind": "lora"}
    return [
        named("app", ("app",), "translatoin", "'translatoin'", "'translation'"),
        named("method", ("method",), "translation.paralel", ":", "'translation.parallel'"),
        named("reader", ("data", "train", 0, "reader"), "embeded", ":6", "'embedded'"),
        named("reader's argument", ("data", "train", 0, "with"), {"scr": "de"}, "'scr'", "'src'"),
        named("preset", ("model",), {"preset": "llama-3bb", "tokenizer": "bpe:400"}, "'llama-3bb'", "'llama-3b'"),
        named("tracker", ("trackers",), ["tensorbord"], "'tensorbord'", "'tensorboard'"),
        named("format", ("model",), {"path": "embedded", "quantization": "nf5", "adapters": [lora]}, "'nf5'", "nf4"),
        named("adapter", ("model",), {"path": "embedded", "adapters": [{"kind": "lorra"}]}, "'lorra'", "'lora'"),
        named("edit", ("model",), {"path": "embedded", "edits": [{"kind": "controll"}]}, "'controll'"),
        named("option", ("with",), {"templates": "alma"}, "'templates'", "'template'"),
        named("option's choice", ("with",), {"directions": "bothe"}, "'both'"),
        named("tokenizer's size", ("model",), {"preset": "tiny", "tokenizer": "bpe:big"}, "bpe:SIZE"),
        named("metric", ("eval",), {"metrics": ["blue"]}, "'blue'", "'bleu'"),
        named("evaluator's argument", ("eval",), {"with": {"xx": 1}}, "xx"),
    ]


def _contradictions() -> list[Case]:
    both = {"path": "embedded", "preset": "tiny", "tokenizer": "bpe:400"}
    stage = {"name": "a", "method": "translation.parallel"}
    other = {"path": "embedded", "adapters": [{"kind": "series", "r": 4}]}
    held = [{"reader": "embedded", "split": "dev"}]
    return [
        Case("path and preset", written(changed(("model",), both)), ("path", "preset", ":4")),
        Case("preset alone", written(changed(("model",), {"preset": "tiny"})), ("tokenizer",)),
        Case("no model", written(changed(("model",), {})), ("model.path",)),
        Case("no app", written(changed(("seed",), 1, drop=("app",))), ("app",)),
        Case("no method", written(changed(("seed",), 1, drop=("method",))), ("no method",)),
        Case("method and stages", written(changed(("stages",), [stage])), ("method or stages",)),
        Case("no data", written(changed(("data",), {"train": []})), ("no training data",)),
        Case(
            "two stages of one name",
            written(changed(("stages",), [stage, stage], drop=("method",))),
            ("used twice",),
        ),
        Case("stage without method", written(changed(("stages",), [{"name": "a"}], drop=("method",))), ("no method",)),
        Case("bad stage name", written(changed(("stages",), [{**stage, "name": "a/b"}], drop=("method",))), ("a/b",)),
        Case("streamed epochs", written(changed(("data", "streaming"), True)), ("max_steps", "data.streaming")),
        Case("betas", written(changed(("train",), {"betas": [0.9]})), ("betas",)),
        Case(
            "frozen and nothing to train",
            written(changed(("model",), {"path": "embedded", "quantization": "nf4"})),
            ("no adapter trains",),
        ),
        Case("a missing base", written(changed(("model",), {"path": "/no/such/folder"})), ("/no/such/folder",)),
        Case("a selection without data", written(changed(("eval",), {"select": "bleu"})), ("data.eval",)),
        Case(
            "an unmeasured selection",
            written({**changed(("eval",), {"select": "blue"}), "data": {**BASE["data"], "eval": held}}),
            ("'blue'", "'bleu'"),
        ),
        Case("version", written(changed(("version",), 2)), ("version", "1")),
        Case("a key of another adapter", written(changed(("model",), other)), ("'r'",)),
    ]  # fmt: skip


def _syntax() -> list[Case]:
    text = written(BASE)
    return [
        Case("empty", "", ("empty",)),
        Case("a list", "- app: translation\n", (":1", "block of keys")),
        Case("a tab", text.replace("model:\n  path", "model:\n\tpath"), (":3", "YAML")),
        Case("an open quote", text.replace("path: embedded", 'path: "embedded'), ("YAML",)),
        Case("an open bracket", text + "trackers: [wandb\n", ("YAML",)),
        Case("a key twice", text + "app: lm\n", ("twice", ":12")),
        Case("a bad indent", text.replace("  path", "     path").replace("model:", "model: x"), ("YAML",)),
        Case("a plain word", "translation\n", ("block of keys",)),
        Case("a block where text belongs", text.replace("app: translation", "app: {name: translation}"), (":1",)),
    ]


def _data() -> list[Case]:
    def source(name: str, says: tuple[str, ...], **given: Any) -> Case:
        return Case(name, written(changed(("data", "train"), [given])), says)

    return [
        source("a missing file", ("/no/file.jsonl",), reader="jsonl", path="/no/file.jsonl"),
        source("an unset variable", ("GRAFT_NOT_SET",), reader="jsonl", path="${GRAFT_NOT_SET}/x.jsonl"),
        source("not JSON", ("rows.jsonl:2",), reader="jsonl", path="{work}/rows.jsonl"),
        source("not an object", ("list.jsonl:1",), reader="jsonl", path="{work}/list.jsonl"),
        source("a missing field", ("field.jsonl:1",), reader="jsonl", path="{work}/field.jsonl"),
        source("an empty file", ("empty.jsonl",), reader="jsonl", path="{work}/empty.jsonl"),
        source("not UTF-8", ("latin.jsonl",), reader="jsonl", path="{work}/latin.jsonl"),
        source("a folder", ("{work}",), reader="jsonl", path="{work}"),
    ]


def _overrides() -> list[Case]:
    def over(text: str, *says: str) -> Case:
        return Case(f"override {text}", written(BASE), (*says, text.partition("=")[0]), (text,))

    return [
        over("train.learning_rate=1", "'learning_rate'"),
        over("train.lr=fast", "number"),
        over("data.train.5.reader=jsonl", "5"),
        over("train.lr.x=1", "x"),
        over("model.pth=embedded", "'path'"),
        over("eval.every=-1", "at least 0"),
    ]


def write_data(work: Path) -> None:
    """The broken files that some recipes name."""
    (work / "rows.jsonl").write_text('{"src": "a", "tgt": "b", "src_lang": "de", "tgt_lang": "en"}\n{"src": \n')
    (work / "list.jsonl").write_text("[1, 2]\n")
    (work / "field.jsonl").write_text('{"text": "a"}\n')
    (work / "empty.jsonl").write_text("")
    (work / "latin.jsonl").write_bytes('{"src": "ä", "tgt": "b"}\n'.encode("latin-1"))


def measure(setting: Setting) -> Measured:
    write_data(setting.work)
    chosen = cases()
    if setting.quick:
        chosen = chosen[:: len(chosen) // 20]
    failures, times, accepted = [], [], 0
    for number, case in enumerate(chosen):
        text = case.text.replace("{work}", str(setting.work))
        file = setting.work / f"case-{number:03d}.yaml"
        file.write_text(text, encoding="utf-8")
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "recipes", "check", str(file), *case.overrides],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        times.append(time.perf_counter() - start)
        said = done.stdout + done.stderr
        missing = [word for word in case.says if word.replace("{work}", str(setting.work)) not in said]
        if done.returncode != 2 or missing or "Traceback" in said:
            why = "accepted" if done.returncode == 0 else f"lacks {missing}" if missing else "a traceback"
            failures.append({"case": case.name, "why": why, "said": said.strip()[-160:]})
        accepted += _plain_loader_accepts(text)
    slow = sum(seconds > LIMIT for seconds in times)
    return Measured(
        100 * (1 - len(failures) / len(chosen)),
        not failures and not slow and (setting.quick or len(chosen) == COUNT),
        baseline={"a plain YAML loader refuses": f"{100 * (1 - accepted / len(chosen)):.0f}%"},
        details={
            "recipes": len(chosen), "slower than 2 s": slow, "median s": round(statistics.median(times), 2),
            "slowest s": round(max(times), 2), "failures": failures[:20],
        },
    )  # fmt: skip


def _plain_loader_accepts(text: str) -> bool:
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False


BAR = Bar(
    "training.badconfig",
    "recipes with a mistake that are refused in 2 s with its place and the nearest word",
    "% of recipes",
    "100 % of 200 (quick 20)",
    "cpu",
    3,
    measure,
)
