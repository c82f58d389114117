"""The documentation says what the code does: every recipe key, every verb, every file it links to."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from core.config import schema

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks():
    return [c for c in vars(schema).values() if dataclasses.is_dataclass(c)]


@pytest.mark.parametrize("block", blocks(), ids=lambda c: c.__name__)
def test_every_key_is_documented(block):
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(block):
        inner = field.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(field.default_factory)
        if inner:
            continue
        meaning = field.metadata["doc"].replace("|", "\\|")
        rows = [line for line in text.splitlines() if line.startswith(f"| `{field.name.rstrip('_')}` |")]
        assert any(line.endswith(f"| {meaning} |") for line in rows), f"{block.__name__}.{field.name}"


def test_every_verb_is_in_the_readme():
    from recipes.cli import VERBS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `graft (\w+)` \|", text, re.M)) == set(VERBS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_reader_and_method_is_on_its_page():
    from core.config.registry import METHODS, get_app

    app = get_app("translation")
    text = (ROOT / "docs" / "translation.md").read_text(encoding="utf-8")
    for name in [*app.readers.names(), *(m for m in METHODS.names() if m.startswith("translation."))]:
        assert f"`{name}`" in text, name


def test_the_smallest_recipe_of_the_readme_is_valid():
    import yaml

    from core.config.load import recipe_from

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert recipe_from(yaml.safe_load(block)).method == "translation.parallel"
