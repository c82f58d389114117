"""The readers: the public RTL benchmarks and sets in their own layouts, generated tasks, and a simple JSONL.

A reader is a generator of `RtlExample`: `reader(path, *, split=None, on_bad=None, …)`. It names file, line and field
of whatever is wrong and hands malformed rows to `on_bad`. Nothing here runs Verilog.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from apps.rtl.example import RtlExample, completed, example_from, to_jsonl
from apps.rtl.source import module_names, renamed, top_of
from core.data.readers import Readers
from core.data.reading import examples_of, fields, json_lines, read_text, reject, required
from core.errors import ConfigError, DataError

__all__ = ["READERS", "STAND_INS", "RtlExample", "example_from", "load_data", "to_jsonl"]

READERS: Readers[RtlExample] = Readers()
load_data = READERS.load
STAND_INS: dict[str, str] = {"chrysalis": "hls_planted", "asserteval": "assertgen"}
TASKS = {"spec": "dataset_spec-to-rtl", "completion": "dataset_code-complete-iccad2023"}


@READERS.register("jsonl")
def jsonl(path: str | Path, *, split: str | None = None, on_bad: Any = None) -> Iterator[RtlExample]:
    """One object a line: `{"spec", "header"?, "top"?, "reference"?, "testbench"?, "id"?, …}`."""
    yield from examples_of(path, split, on_bad, example_from)


@READERS.register("verilogeval")
def verilogeval(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    task: Literal["spec", "completion"] = "spec",
) -> Iterator[RtlExample]:
    """VerilogEval version 2 (Pinckney et al. 2024): the repository, one of its data set folders, or `problems.jsonl`.

    Args:
        task: specification to RTL, or completion of a given header (the ICCAD 2023 form).
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task '{task}'", hint=f"known: {', '.join(TASKS)}")
    folder = Path(path)
    if folder.is_dir() and not (folder / "problems.jsonl").is_file():
        yield from _verilogeval_folder(
            folder / TASKS[task] if (folder / TASKS[task]).is_dir() else folder, task, on_bad
        )
        return
    file = required(path, "problems.jsonl")
    for number, row in json_lines(file, on_bad):
        try:
            names = ("spec_prompt", "ref", "test") if task == "spec" else ("completion_prompt", "ref", "test")
            prompt, reference, test = fields(row, names, file, number)
            header = "" if task == "spec" else fields(row, ("interface",), file, number)[0]
            if task == "completion":
                reference, test = row.get("completion_ref") or reference, row.get("completion_test") or test
            yield _verilogeval_example(str(row.get("task_id", number)), prompt, reference, test, header, task)
        except DataError as error:
            reject(on_bad, error)


def _verilogeval_folder(folder: Path, task: str, on_bad: Any) -> Iterator[RtlExample]:
    prompts = sorted(folder.glob("Prob*_prompt.txt"))
    if not prompts:
        raise DataError(
            "no problems",
            file=folder,
            expected=f"{TASKS[task]}/ProbNNN_name_prompt.txt, _ref.sv, _test.sv (and _ifc.txt)",
        )
    for prompt in prompts:
        name = prompt.name.removesuffix("_prompt.txt")
        try:
            parts = {end: required(folder / f"{name}_{end}") for end in ("ref.sv", "test.sv")}
            header = read_text(required(folder / f"{name}_ifc.txt")) if task == "completion" else ""
            reference, test = (read_text(part) for part in parts.values())
            yield _verilogeval_example(name, read_text(prompt), reference, test, header, task)
        except DataError as error:
            reject(on_bad, error)


def _verilogeval_example(name: str, prompt: str, reference: str, test: str, header: str, task: str) -> RtlExample:
    return completed(
        RtlExample(
            prompt.strip(), header.strip(), "TopModule", reference, "RefModule", test, "tb", task=task, prompt=prompt,
            family="verilogeval", id=name,
        )
    )  # fmt: skip


@READERS.register("verilogeval_v1")
def verilogeval_v1(
    path: str | Path, *, split: str | None = None, on_bad: Any = None, descriptions: str | None = None
) -> Iterator[RtlExample]:
    """VerilogEval version 1 (Liu et al. 2023): `VerilogEval_Human.jsonl` or `_Machine.jsonl`.

    Args:
        descriptions: JSONL with `task_id` and `detail_description`; without it the header is the whole prompt.
    """
    file = required(path, f"VerilogEval_{(split or 'Human').capitalize()}.jsonl")
    words: dict[str, str] = {}
    if descriptions is not None:
        place = required(descriptions)
        for number, row in json_lines(place, on_bad):
            name, text = fields(row, ("task_id", "detail_description"), place, number)
            words[name] = text
    for number, row in json_lines(file, on_bad):
        try:
            name, header, body, test = fields(row, ("task_id", "prompt", "canonical_solution", "test"), file, number)
            top = (module_names(header) or ["top_module"])[0]
            reference = body if module_names(body) else f"{header.rstrip()}\n{body.lstrip(chr(10))}"
            yield completed(
                RtlExample(
                    words.get(name, f"Complete the module {top}."), header, top, reference, top, test, "tb",
                    task="completion", prompt=header, family="verilogeval_v1", id=name,
                )
            )  # fmt: skip
        except DataError as error:
            reject(on_bad, error)


@READERS.register("rtllm")
def rtllm(path: str | Path, *, split: str | None = None, on_bad: Any = None) -> Iterator[RtlExample]:
    """RTLLM 2.0 (Liu et al. 2024): the repository's folders, or `designs.jsonl`.

    The references are called `verified_…`, sometimes by another name than the design; the testbench decides which
    name a candidate must have.
    """
    place = Path(path)
    if place.is_dir() and not (place / "designs.jsonl").is_file():
        rows: Iterator[tuple[int, dict]] = _rtllm_folders(place)
    else:
        place = required(path, "designs.jsonl")
        rows = json_lines(place, on_bad)
    for number, row in rows:
        try:
            names = ("design", "description", "testbench", "verified")
            design, description, testbench, verified = fields(row, names, place, number)
            files = {k: str(v) for k, v in (row.get("aux_files") or {}).items()}
            yield _rtllm_example(design, description, testbench, verified, files, str(row.get("category", "")))
        except DataError as error:
            reject(on_bad, error)


def _rtllm_folders(folder: Path) -> Iterator[tuple[int, dict]]:
    texts = sorted(folder.rglob("design_description.txt"))
    if not texts:
        raise DataError(
            "no designs", file=folder, expected="Category/Sub/design/design_description.txt, testbench.v, …"
        )
    for number, text in enumerate(texts, 1):
        place = text.parent
        verified = sorted(place.glob("verified_*.v"))
        data = {p.name: read_text(p) for p in sorted(place.iterdir()) if p.suffix in (".dat", ".txt") and p != text}
        yield number, {
            "design": place.name, "category": "/".join(place.relative_to(folder).parts[:-1]),
            "description": read_text(text), "verified": read_text(verified[0]) if verified else None,
            "testbench": read_text(place / "testbench.v") if (place / "testbench.v").is_file() else None,
            "aux_files": data,
        }  # fmt: skip


def _rtllm_example(
    design: str, description: str, testbench: str, verified: str, files: dict[str, str], category: str
) -> RtlExample:
    bench = top_of(testbench)
    if bench is None:
        raise DataError(f"the testbench of {design} has no module", field="testbench")
    names = module_names(verified)
    top = _instance_under_test(testbench, design, names)
    reference_top = next((n for n in (f"verified_{top}", f"verified_{design}", top) if n in names), top_of(verified))
    # two designs call their helper modules by what the testbench needs for the candidate
    clash = {top: f"{top}_inner"} if reference_top != top and top in names else {}
    return completed(
        RtlExample(
            description.strip(), "", top, renamed(verified, clash), reference_top or "", testbench, bench, files,
            prompt=description, family="rtllm", split=category, id=design,
        )
    )  # fmt: skip


def _instance_under_test(testbench: str, design: str, references: list[str]) -> str:
    """The module that the testbench instantiates and does not define."""
    from apps.rtl.source import instances

    tree = instances(testbench)
    outside = [name for used in tree.values() for name in sorted(used) if name not in tree]
    if design in outside:
        return design
    plain = {name.removeprefix("verified_") for name in references}
    return next((name for name in outside if name in plain), design)


@READERS.register("rtlcoder")
def rtlcoder(path: str | Path, *, split: str | None = None, on_bad: Any = None) -> Iterator[RtlExample]:
    """RTLCoder (Liu et al. 2023): JSONL `Instruction, Input?, Response[, Score]`; the last response is the reference.

    There is no testbench: an answer can only be compiled, or compared with the reference by equivalence.
    """
    file = required(path, f"{split or 'train'}.jsonl", "Resyn27k.json")
    for number, row in json_lines(file, on_bad):
        try:
            (instruction,) = fields(row, ("Instruction",), file, number)
            responses = row.get("Response")
            responses = [responses] if isinstance(responses, str) else responses
            if not isinstance(responses, list) or not responses or not all(isinstance(r, str) for r in responses):
                raise DataError("wrong value", file=file, line=number, field="Response", got=responses,
                                expected="a list of texts, the reference last")  # fmt: skip
            reference = responses[-1]
            top = top_of(reference)
            if top is None:
                raise DataError("the reference has no module", file=file, line=number, field="Response")
            spec = "\n".join(filter(None, [instruction.strip(), str(row.get("Input") or "").strip()]))
            yield RtlExample(spec, "", top, reference, top, family="rtlcoder", id=str(number))
        except DataError as error:
            reject(on_bad, error)


@READERS.register("asserteval")
def asserteval(path: str | Path, *, split: str | None = None, on_bad: Any = None) -> Iterator[RtlExample]:
    """AssertEval (Pei et al. 2024, AssertLLM): `rtl/<design>/*.v` beside `spec/<design>.pdf` (or .txt, .md).

    The specification is the text beside the design where there is one; a PDF is named, not read. Designs in VHDL are
    given with the family "vhdl", so that a report can list them as not checked.
    """
    folder = Path(path)
    designs = sorted(p for p in (folder / "rtl").iterdir() if p.is_dir()) if (folder / "rtl").is_dir() else []
    if not designs:
        raise DataError("no designs", file=folder, expected="rtl/<design>/*.v and spec/<design>.pdf")
    for design in designs:
        verilog = sorted(design.rglob("*.v")) + sorted(design.rglob("*.sv"))
        words = next((folder / "spec" / f"{design.name}{end}" for end in (".txt", ".md")
                      if (folder / "spec" / f"{design.name}{end}").is_file()), None)  # fmt: skip
        spec = read_text(words) if words else f"See spec/{design.name}.pdf."
        if not verilog:
            yield RtlExample(spec, "", design.name, task="assertions", family="vhdl", id=design.name)
            continue
        code = "\n".join(read_text(file) for file in verilog)
        top = design.name if design.name in module_names(code) else (top_of(code) or design.name)
        yield RtlExample(spec, "", top, code, top, task="assertions", family="asserteval", id=design.name)


@READERS.register("taskgen")
def taskgen(
    path: str | Path | None = None,
    *,
    split: str | None = None,
    on_bad: Any = None,
    size: int = 1000,
    seed: int = 0,
    families: list[str] | None = None,
) -> Iterator[RtlExample]:
    """Tasks made by `apps.rtl.taskgen`: split train, or unseen_params, unseen_paraphrase, unseen_family."""
    from apps.rtl.taskgen import tasks

    yield from tasks(size, split=split or "train", seed=seed, families=families)


@READERS.register("assertgen")
def assertgen(
    path: str | Path | None = None,
    *,
    split: str | None = None,
    on_bad: Any = None,
    size: int = 1000,
    seed: int = 0,
    families: list[str] | None = None,
) -> Iterator[RtlExample]:
    """Generated clocked designs with assertions that hold of them; the splits are those of `taskgen`."""
    from apps.rtl.assertions.score import examples

    yield from examples(size, split=split or "train", seed=seed, families=families)


@READERS.register("chrysalis")
def chrysalis(
    path: str | Path, *, split: str | None = None, on_bad: Any = None, most: int | None = None
) -> Iterator[RtlExample]:
    """Chrysalis-HLS (Wan et al. 2024): its repository or `bugs.jsonl`; bugs that have no place in their source are left
    out. Split "train" or "test" by design.

    Args:
        most: characters of the longest source.
    """
    from apps.rtl.hls.dataset import read_bugs
    from apps.rtl.hls.task import examples

    yield from examples(read_bugs(path, on_bad=on_bad), split=split, most=most)


@READERS.register("hls_planted")
def hls_planted(
    path: str | Path | None = None, *, split: str | None = None, on_bad: Any = None
) -> Iterator[RtlExample]:
    """Bugs planted by rule into functions of this package; split "train" or "test" by function."""
    from apps.rtl.hls.planted import planted_bugs
    from apps.rtl.hls.task import examples

    yield from examples(planted_bugs(), split=split)
