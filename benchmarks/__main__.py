"""The command line: `python -m benchmarks ls` and `python -m benchmarks run ID [--quick] [--json] [--save]`."""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks.bar import find, load_bars
from benchmarks.runner import exit_code, run_bar, show, to_json


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what the project promises.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("ls", help="the bars, and what each needs")
    run = verbs.add_parser("run", help="measure a bar; exit status 1 when it is not met")
    run.add_argument("ids", nargs="+", metavar="ID", help="bar ids, an area such as 'translation', or 'all'")
    run.add_argument("--quick", action="store_true", help="the short form, which can still fail")
    run.add_argument("--json", action="store_true", help="print the result as JSON, one line a bar")
    run.add_argument("--save", action="store_true", help="keep a CPU bar's result in results/ (a GPU bar's always is)")
    run.add_argument("--small", action="store_true", help="measure GPU bars without one, where a form for a CPU exists")
    run.add_argument("--go-on", action="store_true", help="after a run that was killed: what it had finished is kept")
    run.add_argument("--repeats", type=int, help="interleaved repeats of a comparison of trainers, as time allows")
    run.add_argument(
        "--peers", help="the peers of such a comparison, with commas; stored beside the other peers' results"
    )
    options = parser.parse_args(argv)
    peers = tuple(name.strip() for name in options.peers.split(",")) if getattr(options, "peers", None) else None
    bars = load_bars()
    if options.verb == "ls":
        for bar in bars.values():
            print(f"{bar.id:<20} {bar.needs:<3}  {bar.minutes:>4g} min  {bar.target:<44}  {bar.title}")
        return 0
    chosen = find(bars, options.ids)
    if not chosen:
        print(f"no bar called {' '.join(options.ids)}; known: {', '.join(bars)}", file=sys.stderr)
        return 2
    results = []
    for bar in chosen:
        result = run_bar(
            bar, quick=options.quick, save=options.save, repeats=options.repeats, peers=peers, small=options.small,
            go_on=options.go_on,
        )  # fmt: skip
        print(to_json(result) if options.json else show(result), flush=True)
        results.append(result)
    return exit_code(results)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
