"""`graft eval`: score a run or a model on data, or a file of predictions with no model at all."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EXAMPLES = """  graft eval runs/quickstart/42
  graft eval runs/quickstart/42 --data test.jsonl --reader jsonl
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
    parser.add_argument("--beams", type=int)
    parser.add_argument("--out", help="folder for report.json and predictions.jsonl")


def run(options: argparse.Namespace) -> int:
    import yaml

    from core.config.schema import SourceConfig

    source = None
    if options.data:
        arguments_ = dict(pair.partition("=")[::2] for pair in options.reader_arguments)
        arguments_ = {name: yaml.safe_load(value) for name, value in arguments_.items()}
        source = SourceConfig(
            reader=options.reader, path=options.data, split=options.split, limit=options.limit, with_=arguments_
        )
    report = _score_file(options, source) if options.predictions else _score_model(options, source)
    print(report.table())
    if options.out:
        report.save(options.out)
        print(f"saved: {options.out}")
    return 0


def _score_file(options, source):
    from core.config.registry import get_app
    from core.data.rows import BadRows, read_sources
    from core.errors import DataError

    app = get_app(options.target)
    if source is None:
        raise DataError("--predictions needs --data with the references")
    examples = list(read_sources(app, [source], BadRows("raise", None)))
    return app.evaluator_cls(options.metrics or None).score(_predictions(Path(options.predictions)), examples)


def _predictions(path: Path) -> list[str]:
    from core.errors import DataError

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the predictions: {error}", file=path) from error
    if path.suffix != ".jsonl":
        return lines
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line)["prediction"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError("a row is not an object with 'prediction'", file=path, line=number, got=line) from error
    return rows


def _score_model(options, source):
    from core.training.run import evaluate

    sampling = {"beams": options.beams} if options.beams else {}
    return evaluate(
        options.target,
        [source] if source else None,
        app=options.app,
        metrics=options.metrics,
        limit=options.limit,
        sampling=sampling,
    )
