"""Where recipes are found: a path as given, else the recipe of that name that ships with the package."""

from __future__ import annotations

from pathlib import Path

from core.errors import ConfigError, nearest

ROOT = Path(__file__).parent


def shipped() -> dict[str, Path]:
    """Name ("translation/alma") → file, for every recipe that ships."""
    return {str(p.relative_to(ROOT).with_suffix("")): p for p in sorted(ROOT.glob("*/*.yaml"))}


def find(name: str) -> Path:
    """The file for a path or a shipped name; "recipes/translation/alma.yaml" works from any folder."""
    if Path(name).is_file():
        return Path(name)
    recipes = shipped()
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if short in recipes:
        return recipes[short]
    hint = " ".join(filter(None, [nearest(short, recipes), "graft ls shows the recipes that ship"]))
    raise ConfigError("recipe not found", where=name, hint=hint)


def summary(path: Path) -> str:
    """The first comment line of a recipe."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
