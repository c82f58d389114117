"""The tool-use demo's handlers, called as the page calls them, and one round in a browser."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")

from apps.tool_use import FunctionCallPipeline, recorded  # noqa: E402
from core.errors import CheckpointError  # noqa: E402
from demos import tool_use  # noqa: E402
from demos.finding import FIND, Finder  # noqa: E402
from demos.tool_use import LOADED, RECORDED, SAMPLE_SOURCE, SAMPLE_TOOLS  # noqa: E402

TRAIN = "\n".join(f"{e.question} => {e.answer}" for e in recorded.TRAIN)
TESTS = "\n".join(f"{e.question} => {e.answer}" for e in recorded.TESTS)


@pytest.fixture(scope="module")
def page():
    return tool_use.Page(FunctionCallPipeline.from_pretrained("embedded", device="cpu"))


@pytest.mark.parametrize("run", recorded.RUNS, ids=lambda run: run.strategy)
def test_a_recorded_run_is_shown_live_and_its_trace_replays(page, run):
    shown = list(page.run(run.query, RECORDED, "react", "", ""))
    assert len(shown) > 3 * len(run.texts) and not any(banner for banner, *_ in shown)
    assert "observation" not in shown[2][1] and "observation" in shown[-1][1], "events come one by one"
    _, cards, tree, happened, file = shown[-1]
    assert "answer" in cards and '<svg role="img"' in tree and 'stroke-width="3.5"' in tree
    assert "strict" in happened and f"model call {len(run.texts)}" in happened
    again = list(page.replay(file))[-1]
    assert again[0] == "" and again[2] == tree and again[4] is not None
    assert ("gave up" in cards) == (run.strategy == "dfsdt")


def test_the_loaded_model_makes_calls_that_run_in_the_sandbox(page):
    question = "What is 120 shared by 4 people?"
    shown = list(page.run(question, LOADED, "single", SAMPLE_TOOLS, SAMPLE_SOURCE, 4, 1))
    assert shown[-1][0] == "" and "observation" in shown[-1][1] and "share" in shown[-1][2], shown[-1][0]


def test_a_file_of_tools_fills_the_editor_and_rubbish_leaves_it(page, tmp_path):
    (file := tmp_path / "api.yaml").write_text("openapi: 3.0.0\npaths:\n  /a:\n    get: {operationId: days}\n")
    assert page.load(str(file)) == ("", file.read_text(), "")
    assert page.load(None) == ("", SAMPLE_TOOLS, SAMPLE_SOURCE)
    for data, part in ((b"\xff\xfe", "UTF-8"), (b"[" * 100_000, "not JSON"), (b"[]", "no tools"), (b"{}", "a name")):
        file.write_bytes(data)
        banner, *rest = page.load(str(file))
        assert part in banner and not any(isinstance(value, str) for value in rest)


def test_errors_are_shown_in_the_librarys_words(page):
    def said(*arguments):
        return list(page.run(*arguments))[-1][0]

    assert "no question" in said(" ", RECORDED, "react", "", "")
    assert "was not recorded" in said("Why?", RECORDED, "react", "", "")
    assert "not JSON" in said("Why?", LOADED, "react", "[", "")
    assert "a tool has a name" in said("Why?", LOADED, "react", "[{}]", "")
    assert "defines no function" in said("Why?", LOADED, "single", SAMPLE_TOOLS, "x = 1", 4, 1)
    assert "chosen by a retriever" in said("Why?", LOADED, "react", SAMPLE_TOOLS, SAMPLE_SOURCE, 4, 4)
    assert "no trace" in list(page.replay(None))[-1][0]
    hostile = json.dumps([{"name": "<script>alert(1)</script>", "parameters": {"type": "array"}}])
    assert "<script>" not in said("Why?", LOADED, "single", hostile, "")


def test_tools_are_found_with_ticks_and_shares(page, tmp_path):
    banner, tiles, rows = page.finder.find(FIND[0], None)
    assert banner == "" and "S@5" in tiles and rows[0][1] == "✓" and page.finder.ways == ["words"]
    assert "no question" in page.finder.find("", None)[0]
    (tmp_path / "bad.jsonl").write_text("{\n")
    assert "graft-banner" in page.finder.find("x", str(tmp_path / "bad.jsonl"))[0]


@pytest.fixture(scope="module")
def retriever_run(tmp_path_factory):
    """A run of `tool_use.retriever`, from nothing and too short to be good."""
    from core.config.load import load_recipe
    from core.config.run_folder import RunFolder
    from core.training.run import train
    from recipes.catalogue import find

    changed = [
        'model={preset: tiny, tokenizer: "bpe:512", edits: [{kind: bi_encoder, encoder: subwords}]}',
        "data.train=[{reader: embedded, split: train}]",
        "data.eval=[]",
        "eval.metrics=[]",
        "eval.select=loss",
        "train.max_steps=2",
        f"output={tmp_path_factory.mktemp('retriever') / 'run'}",
    ]
    recipe = load_recipe(find("tool_use/retriever"), changed)
    run = RunFolder.create(recipe)
    assert train(recipe, run)["status"] == "done"
    return run.path


def test_a_run_of_a_retriever_opens_and_finds(retriever_run, tmp_path):
    retriever = tool_use.opened(str(retriever_run))
    finder = Finder(retriever)
    found = {way: finder.find(FIND[0], None, way) for way in finder.ways}
    assert list(found) == ["words", "meaning", "both"] and not any(banner for banner, _, _ in found.values())
    assert all("S@5" in tiles and rows for _, tiles, rows in found.values()) and len(found["meaning"][2]) == 8
    assert found["words"][2] == Finder().find(FIND[0], None)[2], "words are found as without training"
    assert found["meaning"][2] != found["words"][2]
    assert found["both"] == finder.find(FIND[0], None), "both is what a page begins with"
    tools = [{"name": name, "description": name, "parameters": {}} for name in ("boil water", "mow lawn")]
    (tmp_path / "tools.json").write_text(json.dumps(tools))
    (tmp_path / "q.jsonl").write_text(json.dumps({"query": "mow the lawn", "tools": ["mow lawn"]}) + "\n")
    banner, tiles, rows = finder.find("mow the lawn", str(tmp_path / "q.jsonl"), "words")
    assert banner == "" and rows[0][1:3] == ["✓", "mow lawn"] and ">2<" in tiles
    assert finder.find(FIND[0], None, "words")[2] == found["words"][2], "the shipped catalogue comes back"
    blocks = tool_use.build(retriever)
    assert "retriever:" in str(blocks.get_config_file()["components"])


def test_models_of_another_kind_are_refused(retriever_run, tmp_path):
    card = {"class": "apps.tool_use.methods.qta:RewritePipeline", "app": "tool_use"}
    (tmp_path / "graft_pipeline.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="rewrites questions"):
        tool_use.opened(str(tmp_path))
    (tmp_path / "graft_pipeline.json").write_text(json.dumps({"class": "a.b:EmbeddingPipeline", "app": "embeddings"}))
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(CheckpointError, match="embeddings"):
        tool_use.opened(str(tmp_path))
    with pytest.raises(CheckpointError):
        tool_use.opened(str(tmp_path / "nothing"))


def test_a_tool_is_made_tested_and_used(page):
    assert "no tool yet" in page.ask(RECORDED, "x")[0]
    shown = list(page.make(RECORDED, recorded.TASK, TRAIN, TESTS))
    assert "✗" in shown[-1][1] and "3 of 3" in shown[-1][1] and shown[-1][0] == ""
    banner, answer = page.ask(RECORDED, "From 3 May to 9 August 2023.")
    assert banner == "" and ">98<" in answer and "days_between" in answer
    assert "does not set ans" in page.ask(RECORDED, "When?")[1]
    assert "line 1 is not" in list(page.make(RECORDED, "t", "no arrow", TESTS))[-1][0]
    assert "not recorded" in list(page.make(RECORDED, "another task", TRAIN, TESTS))[-1][0]


def test_an_upload_is_scored_by_category_and_error(page, tmp_path):
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
    row = {"query": "q", "tools": [tool], "calls": [{"name": "f", "arguments": {"a": 1}}]}
    rows = [{**row, "category": "simple_python", "prediction": '[{"name": "f", "arguments": {"a": 1}}]'},
            {**row, "prediction": "[]"}]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    banner, _, metrics, plot, errors, archive = page.evaluate(str(file))
    assert banner == "" and "100.0 % of 1" in plot and "0.0 % of 1" in plot and archive
    assert errors == [["parallel_function_checker_no_order:wrong_count", 1]] and metrics[0][0] == "ast_accuracy"
    for wrong, part in (
        ({}, "a row has a question"),
        (row, "no prediction"),
        ({**row, "tools": []}, "a row has tools"),
    ):
        file.write_text(json.dumps(wrong) + "\n")
        problem = page.evaluate(str(file))[0]
        assert part in problem and "rows.jsonl:1" in problem
    assert "nothing to score" in page.evaluate(None)[0]


@pytest.mark.browser
def test_a_person_runs_makes_and_asks_without_a_network(page, open_page):
    tab, problems = open_page(tool_use.build(page.pipeline))
    tab.set_default_timeout(60_000)
    tab.get_by_role("button", name="Run", exact=True).click()
    tab.locator(".graft-trace b", has_text="40.80 pounds").wait_for()
    assert tab.locator("#run-tree svg").is_visible() and "strict" in tab.locator(".graft-chips").inner_text()
    tab.get_by_role("tab", name="Tool maker").click()
    tab.get_by_role("button", name="Make the tool").click()
    tab.get_by_text("3 of 3").wait_for()
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.get_by_text("ms in the sandbox").wait_for()
    assert problems == []
