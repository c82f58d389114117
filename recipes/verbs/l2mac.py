"""`graft l2mac`: a long piece of work in a short context, instruction by instruction, every step checked."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """  graft l2mac rtl/stopwatch --recorded
  graft l2mac mine.yaml --model Qwen/Qwen2.5-Coder-7B-Instruct --context 8192
  graft l2mac mine.yaml --model Qwen/Qwen2.5-Coder-7B-Instruct --context 8192     the same again goes on where it was"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", help="YAML with task, instructions, check and with; or a shipped one: rtl/stopwatch")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="run folder, model folder or hub id")
    source.add_argument("--recorded", action="store_true", help="the answers recorded beside the program")
    parser.add_argument("--out", default=None, help="folder of the run; default runs/l2mac/NAME")
    parser.add_argument("--context", type=int, default=4096, help="most tokens of a prompt and its answer")
    parser.add_argument("--reply", type=int, default=700, help="tokens kept free for an answer")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--device", default="auto")


def run(options: argparse.Namespace) -> int:
    from core.agents.program import evaluator_of, finish, load_program, start

    place = _find(options.program)
    program = load_program(place)
    evaluator = evaluator_of(program, _checks())
    name = place.parent.name if place.stem == "program" else place.stem
    folder = Path(options.out or f"runs/l2mac/{name}")
    model, count = _recorded(place) if options.recorded else _opened(options)
    unit = start(
        program, model, evaluator, folder, context=options.context, reply=options.reply, count=count,
        temperature=options.temperature,
    )  # fmt: skip
    if unit.state.turns:
        print(f"going on after turn {unit.state.turns} in {folder}")
    result = unit.run(lambda line: print(line, flush=True))
    finish(result, folder)
    print(f"{result.status}: {result.reason} ({result.turns} turns, {result.restarts} restarts)")
    for path, text in result.files.items():
        print(f"  {folder}/store/files/{path}  {text.count(chr(10))} lines")
    return 0 if result.status == "done" else 1


def _checks() -> dict:
    from apps.cuda.files import KernelsEvaluator
    from apps.rtl.design import DesignEvaluator
    from core.agents.program import CHECKS

    return {**CHECKS, "cuda": KernelsEvaluator, "verilog": DesignEvaluator}


def _find(name: str) -> Path:
    from core.errors import ConfigError
    from recipes.catalogue import ROOT

    for place in (Path(name), ROOT / name.removeprefix("recipes/") / "program.yaml"):
        if place.is_file():
            return place
    shipped = ", ".join(str(p.parent.relative_to(ROOT)) for p in sorted(ROOT.glob("*/*/program.yaml")))
    raise ConfigError("there is no such program", where=name, hint=f"a YAML file, or one that ships: {shipped}")


def _recorded(place: Path) -> tuple:
    from core.agents.models import Recorded
    from core.config.load import parse_yaml
    from core.errors import ConfigError

    file = place.with_name("recorded.yaml")
    if not file.is_file():
        raise ConfigError("no answers are recorded beside this program", where=str(place), hint="give --model")
    raw, _ = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    return Recorded(raw["steps"], raw["summary"]), None


def _opened(options: argparse.Namespace) -> tuple:
    from core.agents.models import EngineModel
    from core.errors import ConfigError
    from core.inference.engines.hf import HfEngine
    from core.inference.load import load_for_serving

    weights, tokenizer, _ = load_for_serving(options.model, device=options.device)
    engine = HfEngine(weights, tokenizer)
    if engine.context is not None and options.context > engine.context:
        raise ConfigError(
            f"a context of {options.context} tokens, and the model has {engine.context}", where="--context",
            hint=f"--context {engine.context}",
        )  # fmt: skip
    model = EngineModel(engine, tokenizer, options.reply)
    return model, model.count
