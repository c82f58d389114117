"""What is scored again is what the run's own recipe would read."""

from __future__ import annotations

import pytest

from core.config.load import parse_yaml, recipe_from
from core.config.run_folder import RunFolder
from core.config.schema import SourceConfig
from core.errors import DataError
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
