"""The transformers engine: the same output alone, in a batch and in a stream, and nothing left changed."""

from __future__ import annotations

import threading

import pytest
import torch

from core.config.schema import ModelConfig
from core.errors import AppInputError, BackendUnavailable
from core.inference.engines.hf import HfEngine
from core.inference.engines.tiny import TinyEngine
from core.inference.request import Request, SamplingParams
from core.models.load import load_model
from core.models.tokenizer import train_bpe

TEXTS = [
    "the red fox",
    "a",
    "Der Hund schläft im Garten, und die Katze auch.",
    "你好 world",
    "one two three",
    "x y",
    "ü",
    "z" * 40,
]


@pytest.fixture(scope="module", params=["tiny", "tiny-gpt2"])
def engine(request):
    tokenizer = train_bpe(TEXTS, 300)
    model = load_model(ModelConfig(preset=request.param), tokenizer, seed=3)
    # Random weights repeat one token; larger ones make outputs that depend on all of the prompt.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
        # Lone bytes of longer characters never win, so that outputs are text.
        broken = [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]
        model.get_input_embeddings().weight[broken] = 0
    return HfEngine(model.eval(), tokenizer)


def requests_of(engine, texts=TEXTS, **keywords):
    return [Request(engine.tokenizer(text)["input_ids"], text, **keywords) for text in texts]


GREEDY = SamplingParams(max_new_tokens=24, logprobs=True)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_greedy_output_is_the_same_alone_and_in_a_batch(engine, size):
    requests = requests_of(engine)
    alone = [engine.generate([r], GREEDY)[0] for r in requests]
    together = [o for i in range(0, 8, size) for o in engine.generate(requests[i : i + size], GREEDY)]
    assert [o.ids for o in together] == [o.ids for o in alone]
    assert len({tuple(o.ids) for o in alone}) > 4, "the model must answer different prompts differently"
    for a, b in zip(alone, together):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_logprobs_are_those_of_a_plain_forward_pass(engine):
    request = requests_of(engine)[2]
    (output,) = engine.generate([request, requests_of(engine)[1]], GREEDY)[:1]
    ids = torch.tensor([request.ids + output.ids])
    with torch.no_grad():
        plain = engine.model(input_ids=ids).logits[0].log_softmax(-1)
    expected = [float(plain[len(request.ids) - 1 + k, token]) for k, token in enumerate(output.ids)]
    assert output.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_new_tokens=20),
        SamplingParams(max_new_tokens=20, temperature=0.9, top_p=0.8, top_k=20, seed=5),
        SamplingParams(max_new_tokens=12, beams=3),
    ],
    ids=["greedy", "sampled", "beams"],
)
def test_a_stream_gives_what_a_call_gives(engine, sampling):
    for request in requests_of(engine)[:4]:
        (whole,) = engine.generate([request], sampling)
        *events, done = engine.stream(request, sampling)
        assert "".join(e.text for e in events) == whole.text == done.result.text
        assert done.result.ids == whole.ids
        assert done.result.finish_reason == whole.finish_reason
        assert done.kind == "done"


def test_a_seed_repeats_no_seed_varies_and_the_global_state_stays(engine):
    request = requests_of(engine)[:1]
    before = torch.get_rng_state()
    seeded = [engine.generate(request, SamplingParams(16, temperature=1.0, seed=7))[0].ids for _ in range(2)]
    free = {tuple(engine.generate(request, SamplingParams(16, temperature=1.5))[0].ids) for _ in range(4)}
    assert seeded[0] == seeded[1]
    assert len(free) > 1
    assert torch.equal(before, torch.get_rng_state())


def test_modes_of_single_modules_come_back(engine):
    engine.model.train()
    frozen = next(m for m in engine.model.modules() if isinstance(m, torch.nn.Embedding))
    frozen.eval()
    modes = [m.training for m in engine.model.modules()]
    try:
        engine.generate(requests_of(engine)[:1], GREEDY)
        engine.score([([1, 2], [3])])
        list(engine.stream(requests_of(engine)[0], GREEDY))
        assert [m.training for m in engine.model.modules()] == modes
    finally:
        engine.model.eval()


def test_dropout_is_silent_while_serving():
    tokenizer = train_bpe(TEXTS, 300)
    engine = HfEngine(load_model(ModelConfig(preset="gpt2-14m"), tokenizer, seed=0).train(), tokenizer)
    pair = [([5, 6, 7, 8], [9, 10])]
    assert engine.score(pair) == engine.score(pair)
    assert engine.model.training
    engine.model.train()
    with torch.no_grad():
        noisy = {float(engine.model(torch.tensor([[5, 6, 7]])).logits.sum()) for _ in range(2)}
    assert len(noisy) == 2, "the model has no dropout: the test above shows nothing"


def first_text(engine):
    for request in requests_of(engine):
        (output,) = engine.generate([request], SamplingParams(max_new_tokens=24))
        if len(output.text) > 12 and "\ufffd" not in output.text[:12]:
            return request, output
    raise AssertionError("no output long enough for this test")


def test_stop_strings_end_the_output_and_are_not_part_of_it(engine):
    request, free = first_text(engine)
    stop = free.text[5:8]
    stopping = SamplingParams(max_new_tokens=24, stop=(stop, "never seen"))
    (output,) = engine.generate([request], stopping)
    assert output.text == free.text[: free.text.index(stop)]
    assert output.finish_reason == "stop"
    assert len(output.ids) < len(free.ids) and output.ids == free.ids[: len(output.ids)]
    *events, done = engine.stream(request, stopping)
    assert "".join(e.text for e in events) == output.text
    assert done.result.ids == output.ids


def test_a_stop_string_of_one_request_does_not_end_another(engine):
    request, free = first_text(engine)
    stopped = Request(request.ids, request.text, stop=(free.text[3:5],))
    short, whole = engine.generate([stopped, request], SamplingParams(max_new_tokens=24))
    assert whole.text == free.text
    assert len(short.text) < len(whole.text)


def test_a_prompt_near_the_end_of_the_context_does_not_shorten_its_neighbours(engine):
    long = Request([65] * (engine.context - 3))
    short = requests_of(engine)[0]
    sampling = SamplingParams(max_new_tokens=10)
    cut, whole = engine.generate([long, short], sampling)
    assert len(cut.ids) <= 3
    assert whole.ids == engine.generate([short], sampling)[0].ids
    with pytest.raises(AppInputError, match="context"):
        engine.generate([Request([65] * engine.context)], sampling)
    with pytest.raises(AppInputError, match="no tokens"):
        engine.generate([Request([])], sampling)


def test_a_penalty_shipped_with_the_weights_does_not_change_greedy_search(engine):
    request = requests_of(engine)[0]
    plain = engine.generate([request], GREEDY)[0].ids
    config = engine.model.generation_config
    config.repetition_penalty, config.no_repeat_ngram_size = 5.0, 1
    try:
        assert engine.generate([request], GREEDY)[0].ids == plain
    finally:
        config.repetition_penalty, config.no_repeat_ngram_size = None, None


def test_scores_are_mean_log_probabilities_and_do_not_depend_on_the_batch(engine):
    pairs = [([5, 6, 7], [8, 9]), ([5], [11, 12, 13, 14]), ([], [7, 8, 9])]
    together = engine.score(pairs)
    assert together == pytest.approx([engine.score([p])[0] for p in pairs], abs=1e-5)
    with torch.no_grad():
        plain = engine.model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    assert together[0] == pytest.approx(float((plain[2, 8] + plain[3, 9]) / 2), abs=1e-5)
    with pytest.raises(AppInputError, match="no token"):
        engine.score([([5, 6], [])])


def test_threads_get_their_own_answers(engine):
    requests = requests_of(engine)
    expected = [engine.generate([r], GREEDY)[0].ids for r in requests]
    got: dict[int, list[int]] = {}

    def work(i):
        got[i] = engine.generate([requests[i]], GREEDY)[0].ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(requests))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert [got[i] for i in range(len(requests))] == expected


def test_a_half_read_stream_blocks_nobody_and_leaks_no_mode(engine):
    request = requests_of(engine)[0]
    stream = engine.stream(request, SamplingParams(max_new_tokens=8))
    next(stream)
    assert not torch.is_inference_mode_enabled()
    assert engine.generate([request], SamplingParams(max_new_tokens=2))
    list(stream)


def test_equal_seeds_make_equal_tiny_engines():
    a, b = TinyEngine(seed=1), TinyEngine(seed=1)
    request = Request(a.tokenizer("hello")["input_ids"], "hello")
    assert a.generate([request], GREEDY) == b.generate([request], GREEDY)


def test_a_closed_engine_says_so():
    engine = TinyEngine()
    engine.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        engine.generate([Request([1])], GREEDY)
