"""Programs in files and what answers them: plans, engines, recordings, folders that are resumed."""

from __future__ import annotations

import json

import pytest

from core.agents import EngineModel, Message, Program, Recorded, StepReport, evaluator_of, load_program, planned
from core.agents.control import SUMMARISE
from core.agents.program import CHECKS, start
from core.errors import BackendUnavailable, ConfigError, DataError
from core.inference.request import Output


class Clean:
    def evaluate(self, files):
        return StepReport()


def call(tool, **more):
    return json.dumps({"tool": tool, **more})


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_program_is_read_and_its_mistakes_have_lines(tmp_path):
    good = write(tmp_path / "a.yaml", "task: Two.\ninstructions: [One., Two.]\ncheck: text\nwith: {words: [1, 5]}\n")
    program = load_program(good)
    assert program.instructions == ["One.", "Two."]
    assert not evaluator_of(program).evaluate({"a": "1 2 3 4 5 6"}).passed
    for text, part in (
        ("task: x\ninstrctions: [a]\n", "a.yaml:2"), ("instructions: [a]\n", "task"), ("task: ' '\n", "empty"),
        ("task: [", "YAML"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=part):
            load_program(write(good, text))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_program(tmp_path / "none.yaml")


def test_a_check_is_found_by_name_and_its_arguments_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'python'"):
        evaluator_of(Program("x", check="pyhton"))
    with pytest.raises(ConfigError, match="'text' cannot be made.*wrods"):
        evaluator_of(Program("x", check="text", with_={"wrods": 1}))
    assert set(CHECKS) == {"python", "commands", "text"}


def test_the_model_plans_where_no_instructions_are_given(tmp_path):
    answers = ["I would rather not.", '["One.", "Two."]']
    asked = []

    def model(messages, temperature):
        asked.append(messages)
        return answers[len(asked) - 1]

    registry = planned(model, "Two files.")
    assert [registry[i] for i in range(len(registry))] == ["One.", "Two."]
    assert "Two files." in asked[0][0].text and "Error: no instructions" in asked[1][-1].text
    with pytest.raises(DataError, match="no plan in 3"):
        planned(lambda messages, temperature: "no", "x")
    with pytest.raises(DataError):
        planned(lambda messages, temperature: json.dumps(["x"] * 9), "x", most=4)


def test_a_plan_is_made_once_and_the_folder_is_of_one_program(tmp_path):
    plans = []

    def model(messages, temperature):
        if messages[0].text.startswith("Plan"):
            plans.append(1)
            return '["One."]'
        return "Summary." if messages[-1].text == SUMMARISE else call("done")

    program = Program("x", files={"given.txt": "1"})
    unit = start(program, model, Clean(), tmp_path)
    assert unit.store.files == {"given.txt": "1"}
    unit.store.write("given.txt", "2")
    assert unit.run().status == "done" and plans == [1]
    again = start(program, model, Clean(), tmp_path)
    assert plans == [1] and again.state.status == "done" and again.store.files == {"given.txt": "2"}
    with pytest.raises(ConfigError, match="another program"):
        start(Program("y"), model, Clean(), tmp_path)


class Engine:
    def __init__(self):
        self.seen = []

    def generate(self, requests, sampling):
        self.seen.append((requests[0].text, sampling))
        return [Output([], " an answer ")]


def test_an_engine_answers_the_same_conversation_with_the_same_seed():
    engine = Engine()
    model = EngineModel(engine, None, reply=9)
    talk = [Message("system", "Rules."), Message("user", "Hello")]
    assert model(talk, 0.4) == "an answer" and model(talk, 0.4) == "an answer"
    model([*talk, Message("assistant", "Hi"), Message("user", "Bye")], 0.4)
    (first, one), (_, two), (_, other) = engine.seen
    assert first == "Rules.\nUser: Hello\nAssistant:" and one == two and one.max_new_tokens == 9
    assert other.seed != one.seed


def test_no_conversation_is_longer_than_its_count():
    from core.models.tokenizer import train_bpe

    tokenizer = train_bpe(["module a; endmodule wire reg write done"], 300)
    templates = (None, "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n")
    for template in templates:
        tokenizer.chat_template = template
        model = EngineModel(Engine(), tokenizer)
        for size in (1, 2, 5, 9):
            talk = [Message("user" if n % 2 else "assistant", "wire a; " * n) for n in range(size)]
            tokens = len(tokenizer(model.render(talk), add_special_tokens=False)["input_ids"])
            assert tokens <= sum(model.count(m.text) + 4 for m in talk)


def test_recordings_depend_on_the_conversation_alone():
    model = Recorded([["a", "b"], ["c"]], "so far")
    opening = [Message("system", ""), Message("user", "Task: x\nInstruction 2 of 2: y")]
    assert model(opening, 0.0) == "c" and model([*opening, Message("user", SUMMARISE)], 1.0) == "so far"
    with pytest.raises(BackendUnavailable, match="answer 2 to instruction 2"):
        model([*opening, Message("assistant", "c"), Message("user", "no")], 0.0)
