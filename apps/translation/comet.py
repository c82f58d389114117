"""COMET (Rei et al. 2020) from a local checkpoint, in a process and, if wanted, an environment of its own.

COMET pins old versions of what we use, so it is never imported here: this file run as a script is the other side.
Rows go in as JSON lines `{"src", "mt", "ref"}` on standard input, `{"scores": [...]}` comes out. Nothing is
downloaded: a checkpoint that is not there is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def comet_scores(checkpoint: str | Path, rows: list[dict[str, str]], python: str | None = None) -> list[float]:
    """One score per row.

    Args:
        checkpoint: a .ckpt file, or a folder with `checkpoints/model.ckpt`.
        rows: source, machine translation and reference of each sentence.
        python: interpreter of the environment with COMET; default this one.

    Raises:
        BackendUnavailable: the checkpoint is not there, or the process ends with an error (its last line is quoted).
    """
    from core.errors import BackendUnavailable

    file = Path(checkpoint)
    if file.is_dir():
        file = file / "checkpoints" / "model.ckpt"
    if not file.is_file():
        raise BackendUnavailable(f"no COMET checkpoint at {file}")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    command = [python or sys.executable, str(Path(__file__).resolve()), str(file)]
    try:
        done = subprocess.run(command, input=lines, capture_output=True, text=True, encoding="utf-8")
    except OSError as error:
        raise BackendUnavailable(f"cannot start {command[0]}: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendUnavailable(f"COMET ended with status {done.returncode}: {last}")
    scores = json.loads(done.stdout.strip().splitlines()[-1])["scores"]
    if len(scores) != len(rows):
        raise BackendUnavailable(f"COMET returned {len(scores)} scores for {len(rows)} rows")
    return [float(score) for score in scores]


def main(checkpoint: str) -> None:
    """The other side: read rows, score them with COMET, print one JSON line."""
    from comet import load_from_checkpoint

    rows: list[dict[str, Any]] = [json.loads(line) for line in sys.stdin]
    output = load_from_checkpoint(checkpoint, local_files_only=True).predict(rows, batch_size=16, gpus=0)
    print(json.dumps({"scores": [float(score) for score in output.scores]}))


if __name__ == "__main__":
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    main(sys.argv[1])
