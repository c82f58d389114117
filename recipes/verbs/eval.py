"""`graft eval`: score a run or a model on data, or a file of predictions with no model at all."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EXAMPLES = """  graft eval runs/quickstart/42
  graft eval runs/quickstart/42 --data test.jsonl --reader jsonl
  graft eval runs/sft/42 --reader verilogeval --data verilog-eval/ --sampling samples=20 temperature=0.85 top_p=0.95
  graft eval translation --data test.jsonl --predictions out.txt"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="run folder or model folder; an app's name with --predictions")
    parser.add_argument("--app", help="app of a model folder")
    parser.add_argument("--data", help="file, folder or prefix; default: the run's own eval sources")
    parser.add_argument("--reader", default="jsonl")
    parser.add_argument("--split")
    parser.add_argument(
        "--with", dest="reader_arguments", nargs="*", default=[], metavar="K=V", help="the reader's own arguments"
    )
    parser.add_argument("--predictions", help="text file, one prediction a line, or JSONL with 'prediction'")
    parser.add_argument("--metrics", nargs="*", default=[])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--shard", metavar="I/N", help="only part I of N of the data, the same parts on every machine")
    parser.add_argument(
        "--evaluator", nargs="*", default=[], metavar="K=V", help="the evaluator's own arguments, over eval.with"
    )  # fmt: skip
    parser.add_argument("--beams", type=int)
    parser.add_argument(
        "--sampling", nargs="*", default=[], metavar="K=V",
        help="how to generate: temperature=0.85 top_p=0.95 …, and samples=20 where an app takes several",
    )  # fmt: skip
    parser.add_argument("--out", help="folder for report.json and predictions.jsonl")


def run(options: argparse.Namespace) -> int:
    from core.config.schema import SourceConfig

    source = None
    if options.data:
        source = SourceConfig(
            reader=options.reader, path=options.data, split=options.split, limit=options.limit,
            with_=_pairs(options.reader_arguments),
        )  # fmt: skip
    report = _score_file(options, source) if options.predictions else _score_model(options, source)
    print(report.table())
    if options.out:
        report.save(options.out)
        print(f"saved: {options.out}")
    return 0


def _pairs(words: list[str]) -> dict[str, object]:
    """`name=value` words as a dictionary; a value is read as YAML."""
    import yaml

    return {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words)}


def _score_file(options, source):
    from core.config.load import check_source
    from core.config.registry import get_app
    from core.config.schema import EvalConfig
    from core.config.typed import Places
    from core.data.rows import BadRows, read_sources
    from core.errors import DataError
    from core.evaluation.shards import aligned
    from core.training.evaluate import make_evaluator, part_of

    app = get_app(options.target)
    if source is None:
        raise DataError("--predictions needs --data with the references")
    check_source(app, source, Places("the data"), ())
    examples = list(read_sources(app, [source], BadRows("raise", None)))
    examples = part_of(app, examples, options.shard)
    evaluator = make_evaluator(app, EvalConfig(metrics=options.metrics, with_=_pairs(options.evaluator)))
    return evaluator.score(aligned(_predictions(Path(options.predictions)), examples), examples)


def _predictions(path: Path) -> list[dict]:
    from core.errors import DataError
    from core.execution.policy import half_character

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the predictions: {error}", file=path) from error
    if path.suffix != ".jsonl":
        return [{"prediction": line} for line in lines]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
            rows[-1]["prediction"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError("a row is not an object with 'prediction'", file=path, line=number, got=line) from error
        if (half := half_character(str(rows[-1]["prediction"]))) is not None:
            raise DataError(f"a prediction holds {half!r}, which is half a character", file=path, line=number)
    return rows


def _score_model(options, source):
    from core.training.run import evaluate

    sampling = {**({"beams": options.beams} if options.beams else {}), **_pairs(options.sampling)}
    return evaluate(
        options.target,
        [source] if source else None,
        app=options.app,
        metrics=options.metrics,
        limit=options.limit,
        sampling=sampling,
        part=options.shard,
        with_=_pairs(options.evaluator),
    )
