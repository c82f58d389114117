"""What every app's pipeline and evaluator must keep, as a test class to inherit.

    class TestTranslation(PipelineContract):
        app = "translation"
        inputs = ("Guten Tag.", …)
        fields = {"src": "de", "tgt": "en"}

The model is random and tiny, and no socket opens: what is tested is the app's frame, not its quality.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import socket
from typing import Any, ClassVar

import pytest

from core.config.registry import get_app
from core.errors import ConfigError, DataError, GraftError


class PipelineContract:
    """Subclasses are called `Test…` and set the attributes below.

    Args:
        app: its name. inputs: at least three texts of different lengths. fields: arguments of every call.
        row: one input as a dictionary. bad: (input, arguments, error class, part of the message).
        golden: (predictions, examples as dictionaries, {metric: value}) for the evaluator.
        sampling: settings of the calls.
    """

    app: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    fields: ClassVar[dict[str, Any]] = {}
    row: ClassVar[dict[str, Any]]
    bad: ClassVar[tuple[tuple[Any, dict[str, Any], type[GraftError], str], ...]] = ()
    golden: ClassVar[tuple[list[Any], list[dict[str, Any]], dict[str, float]]]
    sampling: ClassVar[dict[str, Any]] = {"max_new_tokens": 10}

    @pytest.fixture(autouse=True)
    def no_network(self, monkeypatch):
        def refuse(*arguments, **keywords):
            raise AssertionError(f"a socket was opened: {arguments}")

        for name in ("connect", "connect_ex"):
            monkeypatch.setattr(socket.socket, name, refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    @pytest.fixture(scope="class")
    def pipeline(self, request):
        # Larger random weights, so that different prompts get different answers.
        import torch

        cls = get_app(request.cls.app).pipeline_cls
        made = cls.from_pretrained("any", engine="tiny", **request.cls.sampling)
        with torch.no_grad():
            for parameter in made.engine.model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
        return made

    def texts(self, results) -> list[str]:
        return [result.text for result in results]

    def singly(self, pipeline) -> list[str]:
        return [pipeline(text, **self.fields).text for text in self.inputs]

    # ---- calls -------------------------------------------------------------------------------------------------

    def test_the_output_has_the_shape_of_the_input(self, pipeline):
        one = pipeline(self.inputs[0], **self.fields)
        assert isinstance(one.text, str) and one.meta["prompt"] and one.timings["ms"] >= 0
        assert self.texts(pipeline([self.inputs[0]], **self.fields)) == [one.text]
        assert pipeline([], **self.fields) == []
        assert isinstance(pipeline(self.row).text, str)
        example = pipeline.to_example(self.row)
        assert isinstance(example, pipeline.example_cls)
        assert pipeline(example).text == pipeline(self.row).text

    def test_answers_depend_on_the_input(self, pipeline):
        assert len(set(self.singly(pipeline))) > 1, "every input gets one answer: the tests below show nothing"

    def test_a_list_and_a_batch_keep_the_order(self, pipeline):
        expected = dict(zip(self.inputs, self.singly(pipeline)))
        shuffled = list(self.inputs) * 3
        random.Random(0).shuffle(shuffled)
        wanted = [expected[text] for text in shuffled]
        assert self.texts(pipeline(shuffled, **self.fields)) == wanted
        results = pipeline.batch(iter(shuffled), max_tokens=160, max_size=4, **self.fields)
        assert self.texts(results) == wanted

    def test_a_stream_joined_is_the_call(self, pipeline):
        for text, expected in zip(self.inputs, self.singly(pipeline)):
            *events, done = pipeline.stream(text, **self.fields)
            assert done.kind == "done" and all(event.kind == "text" for event in events)
            assert "".join(event.text for event in events) == expected == done.result.text
            assert [e.t_ms for e in events] == sorted(e.t_ms for e in events)

    def test_a_seed_repeats(self, pipeline):
        drawn = {pipeline(self.inputs[0], temperature=1.0, seed=3, **self.fields).text for _ in range(2)}
        assert len(drawn) == 1

    def test_a_call_leaves_the_configuration_alone(self, pipeline):
        before = pipeline.config
        pipeline(self.inputs[0], max_new_tokens=1, **self.fields)
        assert pipeline.config is before

    def test_bad_input_is_an_error_that_says_what(self, pipeline):
        for given, arguments, error, part in self.bad:
            with pytest.raises(error) as caught:
                pipeline(given, **arguments)
            assert part.lower() in str(caught.value).lower(), str(caught.value)
        with pytest.raises(GraftError):
            pipeline(3.5, **self.fields)

    def test_an_unknown_setting_names_the_nearest(self):
        with pytest.raises(ConfigError, match="max_new_tokens"):
            get_app(self.app).pipeline_cls.from_pretrained("any", engine="tiny", max_new_token=3)

    # ---- folders -----------------------------------------------------------------------------------------------

    def test_full_weights_reload_token_for_token(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path / "model")
        with type(pipeline).from_pretrained(tmp_path / "model", device="cpu") as again:
            assert again.config == pipeline.config
            assert self.texts(again(list(self.inputs), **self.fields)) == self.singly(pipeline)

    def test_an_adapter_reloads_token_for_token_and_merged_too(self, pipeline, tmp_path):
        import torch
        from peft import LoraConfig, get_peft_model

        cls = type(pipeline)
        pipeline.save_pretrained(tmp_path / "base")
        base = cls.from_pretrained(tmp_path / "base", device="cpu")
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        tuned = cls.from_model(get_peft_model(base.engine.model, lora), base.tokenizer, **self.sampling)
        tuned.save_pretrained(tmp_path / "adapter")
        expected = self.texts(tuned(list(self.inputs), **self.fields))
        assert expected != self.singly(pipeline)
        again = cls.from_pretrained(tmp_path / "adapter", device="cpu")
        assert self.texts(again(list(self.inputs), **self.fields)) == expected
        merged = cls.from_model(again.engine.model.merge_and_unload(), again.tokenizer, **self.sampling)
        merged.save_pretrained(tmp_path / "merged")
        last = cls.from_pretrained(tmp_path / "merged", device="cpu")
        assert self.texts(last(list(self.inputs), **self.fields)) == expected

    # ---- evaluation and demo -----------------------------------------------------------------------------------

    def test_the_evaluator_gives_the_golden_figures_without_a_model(self, pipeline):
        predictions, rows, expected = self.golden
        report = get_app(self.app).evaluator_cls().score(predictions, [pipeline.to_example(row) for row in rows])
        for name, value in expected.items():
            assert report.metrics[name].value == pytest.approx(value, abs=0.01), name
        assert report.primary in report.metrics and len(report.rows) == len(rows)
        for metric in report.metrics.values():
            assert metric.value is not None or metric.skipped

    def test_the_evaluator_refuses_what_does_not_line_up(self, pipeline):
        predictions, rows, _ = self.golden
        evaluator = get_app(self.app).evaluator_cls()
        examples = [pipeline.to_example(row) for row in rows]
        with pytest.raises(DataError, match=f"example {len(rows) - 1} has no partner"):
            evaluator.score(predictions[:-1], examples)
        with pytest.raises(DataError, match="empty"):
            evaluator.score([], [])

    def test_what_the_evaluator_scores_is_what_predict_gives(self, pipeline):
        _, rows, _ = self.golden
        examples = [pipeline.to_example(row) for row in rows]
        report = get_app(self.app).evaluator_cls().score(pipeline.predict(examples), examples)
        assert report.value() is not None

    def test_the_demo_builds(self, pipeline):
        if importlib.util.find_spec(f"demos.{self.app}") is None:
            pytest.skip(f"{self.app} has no demo")
        gradio = pytest.importorskip("gradio")
        demo = importlib.import_module(f"demos.{self.app}").build(pipeline)
        assert isinstance(demo, gradio.Blocks)
