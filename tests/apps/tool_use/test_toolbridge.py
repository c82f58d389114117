"""Code in answers: what is learnt, what the filter keeps, and that serving costs one pass and changes nothing."""

import json

import pytest
import torch

from apps.tool_use.bridge import CodeRunner, ModelInserter, agrees, bridged, computes, equations, worth
from apps.tool_use.code_engine import CodeEngine
from apps.tool_use.interleaved import CodedAnswer, comes_to, load_answers, pieces, plain, reaches, row_of
from apps.tool_use.methods.toolbridge import BridgePipeline, NumericEvaluator
from core.data.encode import IGNORE, encode, encode_prompt
from core.errors import DataError
from core.execution import Sandbox
from core.inference.engines.hf import HfEngine
from core.inference.engines.prefix import PrefixEngine
from core.inference.request import Output, Request, SamplingParams
from core.models.tokenizer import train_bpe

CODED = "So 6 * 7 = <python>print(6 * 7)</python><result>42</result>42. The answer is 42."
sandboxed = pytest.mark.skipif(not any(p.available for p in Sandbox.probe()), reason="no sandbox works here")


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([CODED, "Question: How many?\nAnswer: ", "<python>x</python><result>1</result>"] * 3, 330)


@pytest.fixture(scope="module")
def runner():
    with CodeRunner() as made:
        yield made


def test_an_answer_falls_into_its_pieces():
    kinds = [(piece.kind, piece.text) for piece in pieces(CODED)]
    assert kinds == [
        ("text", "So 6 * 7 = "),
        ("code", "print(6 * 7)"),
        ("result", "42"),
        ("text", "42. The answer is 42."),
    ]
    assert "".join(piece.written() for piece in pieces(CODED)) == CODED
    assert plain(CODED) == "So 6 * 7 = 42. The answer is 42."


@pytest.mark.parametrize(
    ("answer", "part"),
    [("<python>1", "not closed"), ("a</python>", "no partner"), ("<result>1</result>", "right behind"),
     ("<python><result>1</result></python>", "no partner"),
     ("<python>1</python> x <result>1</result>", "right behind")],
)  # fmt: skip
def test_marks_without_a_partner_are_told_with_their_place(answer, part):
    with pytest.raises(DataError, match=part) as caught:
        pieces(answer)
    assert "character" in caught.value.field


def test_results_carry_no_loss_and_everything_else_of_the_answer_does(tokenizer):
    row = encode(row_of(CodedAnswer("How many?", CODED)), tokenizer, mode="pieces")
    assert row is not None
    learnt = tokenizer.decode([i for i, label in zip(row.input_ids, row.labels) if label != IGNORE])
    given = tokenizer.decode([i for i, label in zip(row.input_ids, row.labels) if label == IGNORE])
    assert given == "Question: How many?\nAnswer:<result>42</result>"
    assert learnt == " " + CODED.replace("<result>42</result>", "") + tokenizer.eos_token


def test_the_gradient_does_not_know_what_a_result_was_predicted_as(tokenizer):
    """The loss is the same whatever the logits at the places of results are."""
    row = encode(row_of(CodedAnswer("How many?", CODED)), tokenizer, mode="pieces")
    logits = torch.randn(len(row.input_ids), len(tokenizer))
    labels = torch.tensor(row.labels)
    loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORE)
    changed = logits.clone()
    changed[:-1][labels[1:] == IGNORE] = 7.0
    assert torch.equal(torch.nn.functional.cross_entropy(changed[:-1], labels[1:], ignore_index=IGNORE), loss)


@pytest.mark.parametrize(
    ("code", "does"),
    [("print(6 * 7)", True), ("print(42)", False), ("print(str(42))", False), ("x = [i for i in range(3)]", True),
     ("print(sorted([2, 1]))", True), ("print(", False)],
)  # fmt: skip
def test_code_that_only_prints_what_stands_in_it_computes_nothing(code, does):
    assert computes(code) is does


@pytest.mark.parametrize(
    ("result", "after", "same"),
    [("42", "42 pens", True), ("42", "43 pens", False), ("3.3333", "3.33 each", True), ("3.336", "3.33", False),
     ("1234.0", "1,234", True), ("Rome", "is Rome, yes", True), ("Rome", "is Oslo", False), ("42", "none", False)],
)  # fmt: skip
def test_a_result_agrees_with_the_text_behind_it_as_it_is_rounded_there(result, after, same):
    assert agrees(result, after) is same


def test_equations_become_programs():
    made = equations(CodedAnswer("q", "It costs $40 * 1.8 = $72, and 10 + 5% of 20 is 11. So (2 + 3) x 4 = 20."))
    assert made == (
        "It costs $40 * 1.8 = $<python>print(round(40 * 1.8, 6))</python>72, and 10 + 5% of 20 is 11. "
        "So (2 + 3) x 4 = <python>print((2 + 3) * 4)</python>20."
    )
    assert equations(CodedAnswer("q", "x = 3, and f(2) = 4")) is None


def test_what_is_worth_a_tool():
    assert worth(CodedAnswer("What is 3 plus 4?", "3 + 4 = 7")) == "numeric"
    assert worth(CodedAnswer("Sort these words", "a b c")) == "data"
    assert worth(CodedAnswer("What is the capital of Peru?", "Lima")) == "factual"
    assert worth(CodedAnswer("Write a poem", "Roses are red")) is None


def test_a_model_that_changes_the_words_is_refused():
    example = CodedAnswer("q", "6 * 7 = 42.")
    assert ModelInserter(lambda p: "6 * 7 = <python>print(6*7)</python>42.")(example) is not None
    assert ModelInserter(lambda p: "6 * 7 = <python>print(6*7)</python>43.")(example) is None
    assert ModelInserter(lambda p: "6 * 7 = 42.")(example) is None
    assert ModelInserter(lambda p: "6 * 7 = <python>print(6*7) 42.")(example) is None


@sandboxed
def test_what_the_filter_keeps_and_why_it_does_not(runner):
    def fate(answer, **more):
        return bridged([CodedAnswer("What do 6 and 7 give?", answer, **more)], equations, runner)

    kept, _ = fate("6 * 7 = 42. The answer is 42.", gold="42.0")
    assert kept[0].answer == "6 * 7 = <python>print(6 * 7)</python><result>42</result>42. The answer is 42."
    reasons = {
        "the text does not agree": fate("6 * 7 = 43. The answer is 43."),
        "another answer than the known one": fate("6 * 7 = 42. The answer is 42.", gold="13"),
        "other solutions disagree": fate("6 * 7 = 42. The answer is 42.", samples=("13", "13", "42")),
        "no place for code": fate("It is 6 and 7 together."),
        "the code failed": fate("6 * 7 = <python>print(6 * unknown)</python>42"),
        "nothing was printed": fate("6 * 7 = <python>x = 6 * 7</python>42"),
        "the code computes nothing": fate("6 * 7 = <python>print(42)</python>42"),
    }
    for reason, (rows, counts) in reasons.items():
        assert not rows and counts == {reason: 1}, (reason, counts)
    twice = [CodedAnswer("What do 6 and 7 give?", "6 * 7 = 42.")] * 2
    assert bridged(twice, equations, runner)[1] == {"kept numeric": 1, "a duplicate": 1}
    others = [CodedAnswer(f"What do 6 and {n} give?", f"6 * {n} = {6 * n}.") for n in range(2, 6)]
    assert len(bridged(others, equations, runner, most=2)[0]) == 2


@sandboxed
def test_code_remembers_names_within_an_answer_and_not_beyond(runner):
    runner.forget()
    assert runner.run("x = 6") == ("", True) and runner.run("print(x * 7)") == ("42", True)
    runner.forget()
    text, ran = runner.run("print(x)")
    assert not ran and "NameError" in text
    assert runner.run("import socket; socket.create_connection(('1.1.1.1', 80))")[1] is False


class Script:
    """An inner engine that says what the test tells it, piece by piece, and keeps what it was asked."""

    context = None

    def __init__(self, tokenizer, *texts):
        self.tokenizer, self.texts, self.asked = tokenizer, list(texts), []

    def generate(self, requests, sampling):
        (request,) = requests
        self.asked.append((request, sampling.max_new_tokens))
        text = self.texts.pop(0)
        stop = next((s for s in request.stop if s in text), None)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [Output(ids, text.partition(stop)[0] if stop else text)]

    def close(self):
        pass


@sandboxed
def test_the_model_goes_on_behind_the_result_with_the_ids_of_training(tokenizer, runner):
    inner = Script(tokenizer, " So 6 * 7 = <python>print(6 * 7)</python>", "42. The answer is 42.")
    answer = BridgePipeline(CodeEngine(inner, runner), tokenizer)("How many?")
    assert answer.text == CODED and answer.meta["answer"] == "42"
    assert answer.meta["runs"] == [{"code": "print(6 * 7)", "result": "42"}]
    trained = encode(row_of(CodedAnswer("How many?", CODED)), tokenizer, mode="pieces").input_ids
    assert inner.asked[1][0].ids == trained[: len(inner.asked[1][0].ids)], "serving feeds what training encodes"
    assert inner.asked[1][1] < inner.asked[0][1], "one budget of tokens for the whole answer"


@sandboxed
def test_errors_are_shown_and_runs_are_limited(tokenizer, runner):
    looping = Script(tokenizer, *[" <python>print(1 / 0)</python>"] * 3, " end")
    engine = CodeEngine(looping, runner, most=2)
    (made,) = engine.generate([Request(encode_prompt(row_of(CodedAnswer("q", "a"))[:1], tokenizer))], SamplingParams())
    assert made.text.count("<result>ZeroDivisionError") == 2 and engine.runs == 2
    assert "</python>" not in looping.asked[-1][0].stop


def test_the_cache_of_keys_and_values_changes_no_token_and_costs_one_pass(tokenizer):
    """A random model's answer, cut in two by a result, on both engines."""
    from core.config.schema import ModelConfig
    from core.models.load import load_model

    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    start = tokenizer("Question: How many?\nAnswer:", add_special_tokens=False)["input_ids"]
    extra = tokenizer("<result>42</result>", add_special_tokens=False)["input_ids"]
    answers, engines = [], [HfEngine(model, tokenizer), PrefixEngine(model, tokenizer)]
    for engine in engines:
        ids = list(start)
        for _ in range(3):
            (made,) = engine.generate([Request(ids)], SamplingParams(max_new_tokens=7))
            ids = [*ids, *made.ids, *extra]
        answers.append(ids)
    assert answers[0] == answers[1]
    assert engines[1].processed <= 1.02 * len(answers[1])
    assert engines[1].reused > 0


def test_answers_are_right_by_number_or_word():
    assert reaches("The answer is 1,200.", "1200.0") and reaches("so 7", "7") and not reaches("so 8", "7")
    assert reaches("The answer is (C).", "C") and not reaches("The answer is (C).", "D")
    assert comes_to(CODED) == "42" and comes_to("none") is None
    report = NumericEvaluator().score([CODED, "The answer is 41."], [CodedAnswer("q", "", "42")] * 2)
    values = {name: metric.value for name, metric in report.metrics.items()}
    assert values == {"exact_match": 50.0, "with_code": 50.0, "code_failed": 0.0}


def test_rows_are_read_and_bad_ones_are_told(tmp_path):
    file = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": CODED}]
    file.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"question": "q", "answer": "a"}) + "\n")
    assert [row.answer for row in load_answers(file)] == [CODED, "a"]
    file.write_text(json.dumps({"question": "q", "answer": "<python>1"}) + "\n")
    with pytest.raises(DataError, match="not closed") as caught:
        load_answers(file)
    assert caught.value.line == 1
    with pytest.raises(DataError, match="pickle runs code"):
        load_answers(tmp_path / "release.pkl")
    rows = load_answers(None, "embedded", limit=50)
    assert all(reaches(row.answer, row.gold) for row in rows) and len({row.question for row in rows}) > 20
