"""What is scored again is what the run's own recipe would read."""

from __future__ import annotations

import pytest

from core.config.load import apply_override, parse_yaml, recipe_from, resolve_stages
from core.config.registry import app_of
from core.config.run_folder import RunFolder
from core.config.schema import SourceConfig
from core.errors import ConfigError, DataError
from core.training.evaluate import check_select
from core.training.run import evaluate


@pytest.fixture
def run(tmp_path):
    (tmp_path / "rows.jsonl").write_text("not json\n")
    raw, places = parse_yaml(
        f"app: translation\nmodel: {{path: embedded}}\noutput: {tmp_path}/run\nmethod: translation.parallel\n"
        f"data: {{train: [{{reader: embedded}}], eval: [{{path: {tmp_path}/rows.jsonl}}], on_bad: skip}}\n",
        "recipe.yaml",
    )
    return RunFolder.create(recipe_from(raw, places)).path


def test_bad_rows_of_a_runs_own_data_are_skipped_as_its_recipe_says(run, tmp_path):
    with pytest.raises(DataError, match="not valid JSON"):
        evaluate(run, [SourceConfig(reader="jsonl", path=str(tmp_path / "rows.jsonl"))])
    with pytest.raises(DataError) as error:
        evaluate(run)
    assert "not valid JSON" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "what", "where"),
    [
        ("  metrics: [blue]", "unknown metric 'blue'", "mine.yaml:6 (eval.metrics)"),
        ("  select: blue", "'blue' is not measured", "mine.yaml:6 (eval.select)"),
        ("  select: chrf\n  metrics: [bleu]", "'chrf' is not measured", "mine.yaml:6 (eval.select)"),
        ("  select: bleu", "nothing to be measured on", "mine.yaml:6 (eval.select)"),
        ("  with: {boots: 3}", "no argument 'boots'", "mine.yaml:6 (eval.with.boots)"),
        ("eval.select=blue", "'blue' is not measured", "override 'eval.select=blue' (eval.select)"),
    ],
)
def test_what_cannot_be_measured_is_named_with_file_and_line(wrong, what, where):
    inside, override = ("", wrong) if "=" in wrong else (wrong + "\n", "")
    raw, places = parse_yaml(
        "app: translation\nmodel: {path: embedded}\nmethod: translation.parallel\n"
        f"data: {{train: [{{reader: embedded}}]}}\neval:\n{inside}  every: 1\n",
        "mine.yaml",
    )
    if override:
        apply_override(raw, places, override)
    recipe = recipe_from(raw, places)
    with pytest.raises(ConfigError, match=what) as caught:
        check_select(app_of(recipe), resolve_stages(recipe))
    assert caught.value.where == where
