"""Catalogues of tools to choose from, and questions with the tools that answer them.

A `Catalogue` is many tools under ids, each with the text that a search reads: category, name, description, names and
descriptions of the parameters (Qin et al. 2023, ToolLLM). A `ToolQuery` is a question and the ids of its right tools.
The readers open MetaTool, ToolBench, APIBench, MTRB, the leaderboard's function documents, and one simple JSONL.
"""

from __future__ import annotations

import csv
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from apps.tool_use.openapi import document_of, from_openapi
from apps.tool_use.rows import answers_of, told
from apps.tool_use.spec import ToolSpec, as_spec, from_bfcl, from_toolbench
from core.data.readers import Readers
from core.data.reading import required
from core.data.rows import BadRows, jsonl
from core.errors import DataError, nearest

READERS: Readers[ToolQuery] = Readers()
load_queries = READERS.load
STAND_INS: dict[str, str] = {}
BFCL = (
    "simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "live_multiple", "live_parallel",
    "live_parallel_multiple",
)  # fmt: skip
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class Catalogue:
    """Tools under ids: their names, and where several documents share a name `name#2`, `name#3`, …

    Args:
        tools: `ToolSpec`s, functions, or entries of chat completions. Equal tools count once.

    Raises:
        DataError: no tools.
    """

    def __init__(self, tools: Iterable[Any]) -> None:
        self.tools: dict[str, ToolSpec] = {}
        self._ids: dict[str, str] = {}
        named: dict[str, int] = {}
        for tool in map(as_spec, tools):
            key = _key(tool)
            if key in self._ids:
                continue
            named[tool.name] = count = named.get(tool.name, 0) + 1
            self._ids[key] = name = tool.name if count == 1 else f"{tool.name}#{count}"
            self.tools[name] = tool
        if not self.tools:
            raise DataError("the catalogue has no tools", field="tools")

    def __len__(self) -> int:
        return len(self.tools)

    def __repr__(self) -> str:
        return f"Catalogue({len(self)} tools)"

    @property
    def ids(self) -> list[str]:
        return list(self.tools)

    def id_of(self, tool: ToolSpec) -> str:
        """The id of an equal tool. Raises `DataError` when there is none."""
        if _key(tool) not in self._ids:
            raise DataError(
                f"the catalogue has no such tool '{tool.name}'", hint=nearest(tool.name, self.tools) or None
            )
        return self._ids[_key(tool)]

    def checked(self, names: Sequence[str], where: str = "tools") -> tuple[str, ...]:
        """`names` when all are ids here. Raises `DataError` with the nearest id."""
        for name in names:
            if name not in self.tools:
                raise DataError("no tool of the catalogue has this name", field=where, got=name,
                                hint=nearest(name, self.tools) or None)  # fmt: skip
        return tuple(names)

    @cached_property
    def texts(self) -> dict[str, str]:
        """Id → what a search reads of the tool."""
        return {name: document(tool) for name, tool in self.tools.items()}

    def to_rows(self) -> list[dict[str, Any]]:
        """The tools as entries of chat completions, with their categories, in order."""
        return [{**tool.to_chat(), "category": tool.category} for tool in self.tools.values()]

    @classmethod
    def from_file(cls, path: str | Path) -> Catalogue:
        """From a JSON list, JSONL, or OpenAPI 3 in JSON or YAML. Raises `DataError` for anything else."""
        file = required(path)
        if file.suffix == ".jsonl":
            return cls(_with_category(row) for _, row in jsonl(file, BadRows("raise")))
        try:
            value = document_of(file.read_text(encoding="utf-8"))
            if isinstance(value, Mapping) and {"openapi", "swagger"} & set(value):
                return cls(from_openapi(value))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"no catalogue: {error}", file=file, hint="a JSON list of tools, or JSONL") from error
        except DataError as error:
            raise DataError(error.what, file=file, line=error.line, field=error.field, hint=error.hint) from error
        if not isinstance(value, list):
            raise DataError("a catalogue is a list of tools", file=file, got=type(value).__name__)
        return cls(map(_with_category, value))


def _key(tool: ToolSpec) -> str:
    shown = [tool.name, tool.description, tool.parameters, tool.category]
    return json.dumps(shown, sort_keys=True, ensure_ascii=False, default=str)


def _with_category(entry: Any) -> ToolSpec:
    tool = as_spec(entry)
    category = entry.get("category") if isinstance(entry, Mapping) else None
    return tool if category is None else ToolSpec(tool.name, tool.description, tool.parameters, None, str(category))


def document(tool: ToolSpec) -> str:
    """What a search reads of a tool: category, name, description, its parameters' names and descriptions."""
    parts = [tool.category or "", tool.name, tool.description]
    for name, schema in tool.properties.items():
        parts += [name, str(schema.get("description", "")) if isinstance(schema, Mapping) else ""]
    return " ".join(filter(None, (part.strip() for part in parts)))


@dataclass(frozen=True)
class ToolQuery:
    """A question and its right tools.

    Args:
        gold: ids of all tools that the answer needs; empty when none is known, which no score counts.
        rewrites: other wordings of the question, where a model has made some.
    """

    query: str
    gold: tuple[str, ...]
    catalogue: Catalogue = field(repr=False, compare=False)
    id: str | None = None
    rewrites: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What a tokenizer may be trained on: the question and its tools' documents."""
        return "\n".join([self.query, *(self.catalogue.texts[name] for name in self.gold)])

    def __str__(self) -> str:
        return self.query


@READERS.register("jsonl")
def queries(path: str | Path, *, split: str | None = None, on_bad: BadRows, catalogue: str = "") -> Iterator[ToolQuery]:
    """The simple form, {"query": …, "tools": [names], "rewrites"?: […]} a line.

    Args:
        catalogue: file of the tools; by default tools.json or tools.jsonl beside the rows.
    """
    file = required(Path(path) / f"{split or 'train'}.jsonl" if Path(path).is_dir() else path)
    beside = [file.with_name(name) for name in ("tools.jsonl", "tools.json")]
    place = Path(catalogue) if catalogue else next((p for p in beside if p.is_file()), beside[0])
    tools = Catalogue.from_file(place)
    for number, row in jsonl(file, on_bad):
        with told(on_bad, "a question", file=file, line=number):
            rewrites = row.get("rewrites") or []
            if not isinstance(rewrites, list):
                raise DataError("rewrites are a list of texts", field="rewrites", got=rewrites)
            yield ToolQuery(_question(row), tools.checked(_names(row)), tools, str(row.get("id", number)),
                            tuple(map(str, rewrites)))  # fmt: skip


def _question(row: Mapping[str, Any], name: str = "query") -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise DataError("the question is empty", field=name, got=text)
    return text


def _names(row: Mapping[str, Any], key: str = "tools") -> list[str]:
    names = row.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("the right tools are a list of names", field=key, got=names)
    return names


@READERS.register("metatool")
def metatool(
    path: str | Path, *, split: str | None = None, on_bad: BadRows, fold: int | None = None, folds: int = 5,
    halves: bool = False,
) -> Iterator[ToolQuery]:  # fmt: skip
    """MetaTool (Huang et al. 2023): plugin_des.json, single_tool_train.csv, and multi_tool_query.json as split "multi".

    Args:
        fold: of `folds` parts of equal tool shares; split "test" is that part, others the rest. The file is sorted by
            tool; rows come shuffled with seed 0, so that the first ones are a fair sample.
        halves: give only questions of the tools that belong to the half `split`; those of the other are unseen.
    """
    folder = _folder(path)
    described = _json(folder / "plugin_des.json")
    if not isinstance(described, Mapping):
        raise DataError("names and descriptions are an object", file=folder / "plugin_des.json", got=described)
    tools = Catalogue(ToolSpec(name, str(text), NO_PARAMETERS) for name, text in described.items())
    if split == "multi":
        for number, row in enumerate(_listed(folder / "multi_tool_query.json"), 1):
            with told(on_bad, "a question", file=folder / "multi_tool_query.json", field=f"[{number - 1}]"):
                yield ToolQuery(_question(row), tools.checked(_names(row, "tool")), tools, f"multi{number}")
        return
    file = required(folder / "single_tool_train.csv")
    with open(file, encoding="utf-8", newline="") as handle:
        given = list(csv.DictReader(handle))
    rows = [(n, row.get("Query") or "", row.get("Tool") or "") for n, row in enumerate(given, 2)]
    random.Random(0).shuffle(rows)
    parts = folded([tool for _, _, tool in rows], folds)
    for (number, query, tool), part in zip(rows, parts):
        if (fold is not None and (part == fold) != (split == "test")) or (halves and half_of(tool) != split):
            continue
        with told(on_bad, "a question", file=file, line=number):
            yield ToolQuery(_question({"query": query}), tools.checked([tool], "Tool"), tools, str(number))


def folded(classes: Sequence[str], folds: int) -> list[int]:
    """The fold of each row: shuffled with seed 0, each class spread evenly, small classes taking turns."""
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


def half_of(name: str) -> str:
    """The half of the tools, "train" or "test", that a name belongs to."""
    return "test" if zlib.crc32(name.encode()) % 2 else "train"


@READERS.register("bfcl")
def bfcl(path: str | Path, *, split: str | None = None, on_bad: BadRows, halves: bool = False) -> Iterator[ToolQuery]:
    """The leaderboard's Python questions against all of its function documents (Patil et al. 2025).

    Args:
        path: a folder of its files, with possible_answer/ beside them.
        halves: give only the questions whose right tools all belong to the half `split` of the tool names.
    """
    folder, rows, documents = _folder(path), [], []
    for name in BFCL:
        file = next((f for n in (f"BFCL_v4_{name}.json", f"{name}.jsonl") if (f := folder / n).is_file()), None)
        if file is None:
            continue
        answers = answers_of(folder / "possible_answer" / file.name, on_bad)
        for number, row in jsonl(file, on_bad):
            with told(on_bad, "a row of the leaderboard", file=file, line=number):
                offered = {doc["name"]: from_bfcl(doc) for doc in row["function"]}
                text = " ".join(t["content"] for turn in row["question"] for t in turn if t["role"] == "user")
                wanted = dict.fromkeys(called for call in answers[row["id"]] for called in call)
                rows.append((text, [offered[called] for called in wanted], row["id"]))
                documents += [from_bfcl(doc) for doc in row["function"]]
    if not rows:
        raise DataError("no file of the leaderboard here", file=folder, expected="BFCL_v4_simple_python.json, …")
    tools = Catalogue(documents)
    for text, gold, name in rows:
        if halves and any(half_of(tool.name) != (split or "train") for tool in gold):
            continue
        yield ToolQuery(text, tuple(tools.id_of(tool) for tool in gold), tools, name)


@READERS.register("toolbench")
def toolbench(path: str | Path, *, split: str | None = None, on_bad: BadRows) -> Iterator[ToolQuery]:
    """ToolBench's instructions (Qin et al. 2023), a JSON list with `api_list` and `relevant APIs`; a folder gives all
    its *_query.json together."""
    files = sorted(Path(path).glob("*_query.json")) if Path(path).is_dir() else [required(path)]
    read = []
    for file in files:
        for number, row in enumerate(_listed(file)):
            with told(on_bad, "an instruction of ToolBench", file=file, field=f"[{number}]"):
                apis = {(api["tool_name"], api["api_name"]): from_toolbench(api) for api in row["api_list"]}
                gold = [apis[tuple(pair)] for pair in row["relevant APIs"]]
                read.append((_question(row), gold, apis, str(row.get("query_id", number + 1))))
    tools = Catalogue(api for _, _, apis, _ in read for api in apis.values())
    for question, gold, _, name in read:
        yield ToolQuery(question, tuple(dict.fromkeys(map(tools.id_of, gold))), tools, name)


@READERS.register("apibench")
def apibench(path: str | Path, *, split: str | None = None, on_bad: BadRows) -> Iterator[ToolQuery]:
    """APIBench (Patil et al. 2023): `{hub}_api.jsonl` is the catalogue, `{hub}_{split}.jsonl` the instructions.

    Args:
        path: the folder and the hub, as data/apibench/torchhub. A call that no tool of the catalogue has has no gold.
    """
    prefix, by_call, specs = Path(path), {}, []
    for _, row in jsonl(required(f"{prefix}_api.jsonl"), on_bad):
        text = " ".join(str(row.get(word, "")) for word in ("domain", "functionality", "description"))
        spec = ToolSpec(str(row.get("api_name", "")), text, NO_PARAMETERS, category=row.get("framework"))
        by_call[row.get("api_call")] = spec
        specs.append(spec)
    tools = Catalogue(specs)
    for number, row in jsonl(required(f"{prefix}_{split or 'train'}.jsonl"), on_bad):
        asked = re.search(r"Instruction'?:\s*(.+?),?\s*(?:\n###Output|'Output':)", str(row.get("code", "")), re.S)
        if asked is None:
            on_bad.handle(DataError("no instruction", file=f"{prefix}_{split or 'train'}.jsonl", line=number))
            continue
        gold = by_call.get(row.get("api_call"))
        yield ToolQuery(asked[1].strip(), () if gold is None else (tools.id_of(gold),), tools, str(number))


@READERS.register("mtrb")
def mtrb(path: str | Path, *, split: str | None = None, on_bad: BadRows, catalogue: str = "") -> Iterator[ToolQuery]:
    """MTRB (massive tool retrieval): {"query", "relevant Tools"} rows, matched by name.

    Its stored ids do not belong to the released catalogue, so they are never used.

    Args:
        catalogue: file of the tools; tools.json beside the rows by default.
    """
    file = required(path)
    tools = Catalogue.from_file(catalogue or file.with_name("tools.json"))
    for number, row in enumerate(_listed(file), 1):
        with told(on_bad, "a question", file=file, field=f"[{number - 1}]"):
            yield ToolQuery(_question(row), tools.checked(_names(row, "relevant Tools")), tools, str(number))


@READERS.register("embedded")
def embedded(path: str | Path | None = None, *, split: str | None = None, on_bad: Any = None) -> Iterator[ToolQuery]:
    """Questions for the small tools that the project makes; the tools of split test are new to train and dev."""
    from apps.tool_use.tasks import TASKS, tasks

    tools = Catalogue(task.tool for task in TASKS)
    for number, (question, _, call) in enumerate(tasks(split or "train")):
        yield ToolQuery(question, (call.name,), tools, str(number))


def _folder(path: str | Path | None) -> Path:
    if path is None or not Path(path).is_dir():
        raise DataError("the folder does not exist", file=path, hint="give the folder of the files")
    return Path(path)


def _json(path: Path) -> Any:
    try:
        return json.loads(required(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", file=path) from error


def _listed(path: Path) -> list[Any]:
    value = _json(path)
    if not isinstance(value, list):
        raise DataError("not a list", file=path, got=type(value).__name__)
    return value
