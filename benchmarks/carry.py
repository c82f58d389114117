"""What a bar needs besides the checkout, in one folder: for a GPU machine that reaches neither data nor a registry.

    python -m benchmarks.carry methods quantization --to .data/carry
    (there)  export GRAFT_DATA=.data/carry PYTHONPATH=.data/carry/site; python -m benchmarks run methods.ast_gap

Models and data are copied from the development data beside the checkout; packages are fetched as wheels for the other
machine's Python and unpacked into `site/` (peers into `peers/`, which GRAFT_PEERS names, so that only they see them).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bar import Unavailable
from benchmarks.data import data_root


@dataclass(frozen=True)
class Load:
    """Args:
    models: folders below models/. data: files and folders below data/.
    packages: for our own process. sources: the same, pure Python without wheels. peers: for the other trainers alone.
    without: what is left out, as globs. tools: Debian packages or programs.
    """

    models: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()


HUMAN_WRITTEN, METATOOL = "translation/wmt_human_written/deen", "tool_use/metatool"
SCHEMAS = ("jsonschema", "jsonschema-specifications", "referencing", "rpds-py")
OTHER_DRIVERS = tuple(f"bitsandbytes/libbitsandbytes_{name}*.so" for name in ("cuda11", "cuda12", "rocm", "xpu"))
LOADS = {
    "training": Load(
        packages=("bitsandbytes",),
        peers=(
            "trl==1.15.0", "datasets==4.8.0", "liger-kernel==0.8.5", "unsloth==2026.10.9", "unsloth_zoo==2026.10.9",
            "bitsandbytes", "cut_cross_entropy", "xformers", "torchao", "tyro", "hf_transfer", "msgspec", "dill==0.4.1",
            "multiprocess==0.70.19", "diffusers", "kernels", "structlog", "json5", "nest-asyncio", "docstring-parser",
            "shtab", "pydantic==2.14.4", "pydantic-core==2.50.5",
        ),
        without=("studio", "test", "unsloth_cli", *OTHER_DRIVERS),
    ),
    "methods": Load(
        models=("small-22m",),
        data=(
            "low_resource/nusax/mt", "rtl/rtllm_v2/designs.jsonl", "rtl/chrysalis_hls/bugs.jsonl",
            "rtl/verilog_eval_v2/problems.jsonl", HUMAN_WRITTEN,
        ),
    ),
    "quantization": Load(
        models=("tiny-7m", "small-22m"),
        data=("lm/gutenberg", "translation/ntrex/newstest2019-src.eng.txt"),
        packages=("bitsandbytes",),
        sources=("gemlite",),
        without=OTHER_DRIVERS,
    ),
    "tool_use": Load(
        models=("small-22m",),
        data=(METATOOL, "tool_use/bfcl", "tool_use/toolalpaca/eval_simulated.json"),
        packages=SCHEMAS,
    ),
    "embeddings": Load(
        models=("small-22m",),
        data=(
            METATOOL, "embeddings/stsb_multi/stsb-en-train.csv", "embeddings/stsb_multi/stsb-en-dev.csv",
            "translation/multi30k/train.en", "translation/multi30k/train.de", HUMAN_WRITTEN, "lm/web_demo",
            "biomed/pubmedqa/labeled.jsonl",
        ),
        packages=("datasets==4.8.0", "dill==0.4.1", "multiprocess==0.70.19", "sentence-transformers"),
    ),
    "rtl": Load(packages=("pyslang", "nanobind-backend"), tools=("iverilog", "bubblewrap", "unshare", "setpriv")),
}  # fmt: skip
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (34, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]


def carry(areas: Sequence[str], place: Path, python: str = "3.12") -> int:
    """Put the areas' loads into `place`. Returns the bytes there.

    Raises:
        Unavailable: an unknown area, data that is missing, or a package that has no wheel for that Python.
    """
    unknown = [area for area in areas if area not in LOADS]
    if unknown:
        raise Unavailable(f"nothing to carry is known for {', '.join(unknown)}; areas: {', '.join(LOADS)}")
    loads = [LOADS[area] for area in areas]
    root = data_root()
    wanted = {f"models/{name}": root.parent / "models" / name for load in loads for name in load.models}
    wanted |= {f"data/{name}": root / name for load in loads for name in load.data}
    missing = [str(path) for path in wanted.values() if not path.exists()]
    if missing:
        raise Unavailable(f"missing: {', '.join(missing)}")
    for name, path in wanted.items():
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copy(path, target)
    (place / "data" / "translation").mkdir(parents=True, exist_ok=True)  # by which a data root is known
    without = [pattern for load in loads for pattern in load.without]
    for folder, packages in (
        ("site", [name for load in loads for name in load.packages]),
        ("peers", [name for load in loads for name in load.peers]),
    ):
        if packages:
            unpack(sorted(set(packages)), place / folder, python, without)
    for name in sorted({name for load in loads for name in load.sources}):
        pip("install", "-q", "--no-deps", "--upgrade", "--target", str(place / "site"), name)
    for name in sorted({name for load in loads for name in load.tools}):
        take_tool(name, place / "tools")
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def unpack(packages: Sequence[str], site: Path, python: str, without: Sequence[str]) -> None:
    """Wheels of `packages`, without what they need, unpacked into `site`."""
    for_it = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for_it += [word for platform in PLATFORMS for word in ("--platform", platform)]
    with tempfile.TemporaryDirectory() as wheels:
        pip("download", "-q", "--no-deps", *for_it, "-d", wheels, *packages)
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
    for pattern in without:
        for path in site.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def take_tool(name: str, place: Path) -> None:
    """A Debian package's files in /usr/bin and /usr/lib, or one program, and the libraries that they are linked to.

    Raises:
        Unavailable: it is not installed here.
    """
    listed = subprocess.run(["dpkg", "-L", name], capture_output=True, text=True, check=False).stdout.splitlines()
    program = shutil.which(name)
    files = [Path(f) for f in listed if f.startswith(("/usr/bin/", "/usr/lib/")) and Path(f).is_file()]
    files = files or ([Path("/usr/bin", name)] if program else [])
    if not files:
        raise Unavailable(f"{name} is not installed (a Debian package)")
    linked = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False).stdout
    libraries = {Path(word) for word in linked.split() if word.startswith("/") and ".so" in word and ":" not in word}
    targets = [(file, place / file.relative_to("/")) for file in files]
    for file, target in [*targets, *((library, place / "libs" / library.name) for library in libraries)]:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def pip(*words: str) -> None:
    """Run pip. Raises `Unavailable` with its last words."""
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Unavailable(f"pip {words[0]}: {said[-1] if said else done.returncode}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("areas", nargs="+", help=", ".join(LOADS))
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--python", default="3.12", help="the other machine's Python")
    given = parser.parse_args(argv)
    try:
        size = carry(given.areas, given.to, given.python)
    except Unavailable as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    print(f"{given.to}: {size / 2**20:.0f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
