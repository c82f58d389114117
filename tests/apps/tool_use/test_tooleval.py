"""ToolEval on fixtures worked by hand: pass and win rates are exact, and no model is needed to score."""

from __future__ import annotations

import json

import pytest

from apps.tool_use.executors import Local
from apps.tool_use.pipeline import ToolUseConfig, ToolUsePipeline
from apps.tool_use.tooleval import PASS, Answered, Judge, answered, main, majority, read_answers, score, word_of
from benchmarks.tool_scenarios import say, work
from core.errors import BackendUnavailable, DataError
from core.inference.engines.script import ScriptEngine

DONE = {"name": "Finish"}


def answer(id, text="yes", steps=(DONE,), query=None):
    return Answered(id, query or f"Task {id}?", text, tuple(steps), "work: Do one piece of work.")


def judge(words, votes=4, seed=0):
    """A judge who says for each prompt the words of the first key it holds, over and over."""
    count: dict[str, int] = {}

    def model(prompt):
        key = next(key for key in words if key in prompt)
        said = words[key]
        count[key] = count.get(key, -1) + 1
        return said[count[key] % len(said)]

    return Judge(model, "by hand", votes=votes, seed=seed)


def test_the_table_of_passes():
    assert {pair for pair, verdict in PASS.items() if verdict == "fail"} == {("unsolved", "solvable")}
    assert all(PASS["solved", other] == "pass" for other in ("solvable", "unsolvable", "unsure"))
    assert PASS["unsolved", "unsolvable"] == "pass" and PASS["unsolved", "unsure"] == "unsure"
    assert {PASS["unsure", other] for other in ("solvable", "unsolvable", "unsure")} == {"unsure"}


@pytest.mark.parametrize(
    ("solved", "solvable", "expected"),
    [
        (["solved"], ["solvable"], "pass"),
        (["unsolved"], ["solvable"], "fail"),
        (["unsolved"], ["unsolvable"], "pass"),
        (["unsure"], ["unsolvable"], "unsure"),
        (["solved", "solved", "solved", "unsolved"], ["solvable"], "pass"),
        (["solved", "unsolved", "unsolved", "unsolved"], ["solvable"], "fail"),
        (["solved", "unsolved", "unsolved", "unsolved"], ["solvable", "solvable", "unsolvable", "unsolvable"], "pass"),
        (["unsure", "unsolved", "unsure", "solved"], ["solvable"], "unsure"),
    ],
)
def test_verdicts_by_hand(solved, solvable, expected):
    assert judge({"solve the task?": solved, "be solved with": solvable}).passes(answer("1")) == expected


def test_an_answer_without_finish_fails_before_anybody_is_asked():
    assert judge({}).passes(answer("1", steps=())) == "fail"
    assert judge({}).passes(answer("1", steps=(DONE, {"name": "work"}))) == "fail"


def test_a_tie_is_a_coin_that_the_seed_decides():
    words = {"solve the task?": ["solved", "unsolved"], "be solved with": ["solvable"]}
    drawn = [judge(words, seed=seed).passes(answer("1")) for seed in range(40)]
    assert 10 < drawn.count("pass") < 30 and set(drawn) == {"pass", "fail"}
    assert [majority(["a", "b"], "s") for _ in range(3)] == [majority(["b", "a"], "s")] * 3
    assert majority(["a", "b", "b"], "x") == "b"


def test_a_judge_who_likes_the_first_place_gives_ties():
    mine, theirs = answer("1", "mine"), answer("1", "theirs")
    assert judge({"Which is better": ["first"]}).prefers(mine, theirs) == "tie"
    fair = judge({"First answer, with the calls that led to it:\nFinish({}) -> \nAnswer: mine": ["first"],
                  "First answer": ["second"]})  # fmt: skip
    assert fair.prefers(mine, theirs) == "win" and fair.prefers(theirs, mine) == "lose"


def test_rates_by_hand():
    mine = [answer("1", "good"), answer("2", "bad"), answer("3", "good"), answer("4", "good", steps=())]
    theirs = [answer("4", "good"), answer("3", "good"), answer("2", "good"), answer("1", "bad")]
    words = {"Answer: good\n\nDoes": ["solved"], "Answer: bad\n\nDoes": ["unsolved"], "be solved with": ["solvable"],
             "Which is better": ["tie"]}  # fmt: skip
    report = score(mine, judge(words), theirs)
    # 1: pass against fail wins; 2: fail against pass loses; 3: both pass, a tie; 4: no Finish, loses
    assert report.value("pass_rate") == 50.0 and report.value("reference_pass_rate") == 75.0
    assert report.value("win_rate") == 100 * 1.5 / 4
    assert [row["outcome"] for row in report.rows] == ["win", "lose", "tie", "lose"]
    assert report.signature["judge"] == "by hand" and report.signature["verdicts"] == {"pass": 2, "fail": 2}
    with pytest.raises(DataError, match="no answer to a task"):
        score(mine, judge(words), theirs[:2])


def test_a_judges_words_are_found_in_what_it_says():
    words = ("solved", "unsolved", "unsure")
    assert word_of("The task is **Solved**.", words) == "solved" and word_of("unsolved", words) == "unsolved"
    assert word_of("I cannot say.", words) == "unsure" and word_of("", words) == "unsure"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_command_scores_recorded_judgements_without_a_model(tmp_path, capsys):
    rows = [{"id": n, "query": f"Task {n}?", "answer": text, "steps": [DONE], "tools": "t"}
            for n, text in (("1", "good"), ("2", "bad"))]  # fmt: skip
    file = write(tmp_path / "a.jsonl", rows)
    other = write(tmp_path / "b.jsonl", [{**row, "answer": "bad"} for row in rows])
    recorded = judge({"Answer: good\n\nDoes": ["solved"], "Answer: bad\n\nDoes": ["unsolved"],
                      "be solved with": ["solvable"], "Which is better": ["tie"]})  # fmt: skip
    score(read_answers(file), recorded, read_answers(other))
    recorded.record(tmp_path / "j.jsonl")
    arguments = [file, "--judgements", str(tmp_path / "j.jsonl"), "--against", other, "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "50.00%" in said and "75.00%" in said and "judge: by hand, 4 votes" in said
    assert json.loads((tmp_path / "out/report.json").read_text())["signature"]["judge"] == "by hand"
    assert main([*arguments[:3], "--votes", "5"]) == 2 and "said nothing on this" in capsys.readouterr().err


def test_bad_files_say_where(tmp_path):
    good = {"id": "1", "query": "q"}
    for rows, part in (([{"id": "1"}], "a.jsonl:1"), ([good, good], "two answers"), ([], "no answers"),
                       ([{**good, "steps": [{}]}], "a step has a name")):  # fmt: skip
        with pytest.raises(DataError, match=part):
            read_answers(write(tmp_path / "a.jsonl", rows))
    said = {"key": "1", "words": []}
    two = [{"judge": "a", **said}, {"judge": "b", **said}]
    for rows, part in (([{"judge": "a"}], "not a judgement"), ([], "not of one judge"), (two, "one judge")):
        with pytest.raises(DataError, match=part):
            Judge.replayed(write(tmp_path / "j.jsonl", rows))
    with pytest.raises(DataError, match="cannot read"):
        read_answers(tmp_path / "none.jsonl")
    with pytest.raises(BackendUnavailable, match="a said nothing"):
        Judge(None, "a").passes(answer("1"))


def test_results_of_a_pipeline_are_answers():
    script = iter([say("o", 1), say("a", 2), *[say("o", n) for n in range(3)]])
    executor = Local([work], trusted=True)
    pipeline = ToolUsePipeline(
        ScriptEngine(lambda prompt: next(script)), None, ToolUseConfig(max_calls=3), executor=executor
    )
    made = answered(pipeline("Go."), "1")
    assert made.finished and made.answer == "2" and made.steps[0]["observation"] == "piece 1 done"
    assert made.tools == "work: Do one piece of work."
    assert not answered(pipeline("Go on."), "2").finished
