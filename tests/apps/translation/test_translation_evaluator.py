"""The evaluator against sacreBLEU's own command line, its floors, and what it says of bad and missing things."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from apps.translation import TranslationEvaluator, TranslationExample, load_data
from apps.translation.metrics import bleu_tokenizer, detectable, has_term
from core.errors import ConfigError, DataError
from core.evaluation.report import Report

HAS_MECAB = all(importlib.util.find_spec(name) for name in ("MeCab", "ipadic"))

ZH = [
    ("今天天气很好，我们去公园散步。", "今天天气很好，我们去公园走走。"),
    ("他在图书馆里看书。", "他正在图书馆看书。"),
    ("这本书的价格是25.50元。", "这本书的价格为25.50元。"),
    ("请把门关上。", "请关门。"),
    ("北京是中国的首都。", "中国的首都是北京。"),
    ("我喜欢喝茶，不喜欢喝咖啡。", "我爱喝茶，不爱喝咖啡。"),
    ("iPhone 15 明天发布！", "iPhone 15 将于明天发布！"),
]
JA = [
    ("今日は天気がいいので、公園を散歩しましょう。", "今日は天気が良いので公園を散歩しましょう。"),
    ("彼は図書館で本を読んでいます。", "彼は図書館で本を読んでいる。"),
    ("この本の値段は2,500円です。", "この本は2,500円です。"),
    ("ドアを閉めてください。", "ドアを閉めて下さい。"),
    ("東京は日本の首都です。", "日本の首都は東京です。"),
]
EDGES = [
    ("", "Nothing was said."),
    ("The price is 3.50 EUR (incl. VAT), see https://example.org/a?b=1.", "The price is €3.50 incl. VAT; see https://example.org/a?b=1."),
    ("He said: “No!” – and left…", 'He said: "No!" - and left...'),
    ("word", "word"),
    ("a much longer output than the short reference has any need of", "short reference"),
    ("Don't re-tokenise it's U.S.-based", "Don't re-tokenize: it's U.S.-based"),
    ("New\u00a0York 10,000 km²", "New York 10 000 km²"),
]  # fmt: skip


def embedded(limit: int) -> list[tuple[str, str]]:
    """Copies of the source with every third reference in their place."""
    rows = load_data(reader="embedded", split="test", src="en", tgt="de", limit=limit)
    return [
        (e.tgt if i % 3 == 0 else e.tgt.replace("die", "das") if i % 3 == 1 else e.src, e.tgt)
        for i, e in enumerate(rows)
    ]


CORPORA = {
    "de": lambda: embedded(150),
    "de-long": lambda: [(" ".join([a, c]), " ".join([b, d])) for (a, b), (c, d) in zip(embedded(60), embedded(60)[1:])],
    "en": lambda: EDGES,
    "zh": lambda: ZH,
    "ja": lambda: JA,
}


def command_line(tmp_path, predictions, references, *arguments):
    files = [tmp_path / "hyp", tmp_path / "ref"]
    for file, texts in zip(files, (predictions, references)):
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        str(files[1]),
        "-i",
        str(files[0]),
        "-w",
        "10",
        "-f",
        "json",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {row["name"]: row for row in (found if isinstance(found, list) else [found])}


@pytest.mark.parametrize("corpus", CORPORA)
def test_scores_and_signatures_equal_the_command_line(corpus, tmp_path):
    rows, lang = CORPORA[corpus](), corpus.partition("-")[0]
    predictions, references = [p for p, _ in rows], [r for _, r in rows]
    source = "en" if lang != "en" else "de"
    examples = [TranslationExample("-", r, source, lang) for r in references]
    metrics = ["bleu", "chrf", "chrf++", "ter"]
    report = TranslationEvaluator(metrics, bootstrap=0).score(predictions, examples)
    wanted = {"chrf": "chrF2", "ter": "TER", "bleu": "BLEU"}
    if lang == "ja" and not HAS_MECAB:
        assert report.metrics["bleu"].value is None and "MeCab" in report.metrics["bleu"].skipped
        assert report.primary == "bleu" and "bleu" not in report.signature
        del wanted["bleu"]
    names = {"bleu": "bleu", "chrf": "chrf", "ter": "ter"}
    chosen = [names[name] for name in wanted]
    tokenizer = ["--tokenize", bleu_tokenizer(lang)] if "bleu" in wanted else []
    theirs = command_line(tmp_path, predictions, references, "-m", *chosen, *tokenizer)
    theirs.update(command_line(tmp_path, predictions, references, "-m", "chrf", "--chrf-word-order", "2"))
    for name, label in {**wanted, "chrf++": "chrF2++"}.items():
        assert report.metrics[name].value == pytest.approx(theirs[label]["score"], abs=1e-6), name
        assert report.signature[name] == theirs[label]["signature"], name
    if lang == "ja" and not HAS_MECAB:
        pytest.skip("MeCab is not installed: BLEU of Japanese was reported as skipped, chrF and TER were compared")


def test_floor_of_copying_the_source(shared_data):
    examples = load_data(shared_data / "translation/multi30k/test_2016_flickr", "moses", src="en", tgt="de")
    report = TranslationEvaluator(["bleu", "chrf", "ter", "off_target"], bootstrap=200).score(
        [e.src for e in examples], examples
    )
    assert round(report.metrics["bleu"].value, 2) == 0.48
    assert round(report.metrics["chrf"].value, 2) == 16.34
    assert round(report.metrics["ter"].value, 2) == 106.75
    assert report.metrics["off_target"].value > 98 and report.signature["off_target"]["references"] < 2
    low, high = report.metrics["chrf"].ci95
    assert low < 16.34 < high and high - low < 2


@pytest.fixture(scope="module")
def pairs():
    return load_data(reader="embedded", split="test", src="de", tgt="en", limit=60)


def test_a_perfect_system_and_an_empty_one(pairs):
    perfect = TranslationEvaluator(bootstrap=50).score([e.tgt for e in pairs], pairs)
    assert perfect.metrics["bleu"].value == pytest.approx(100) and perfect.metrics["ter"].value == 0
    assert perfect.metrics["empty"].value == 0 and perfect.metrics["length_ratio"].value == 1
    nothing = TranslationEvaluator(bootstrap=50).score([""] * len(pairs), pairs)
    assert nothing.metrics["bleu"].value == 0 and nothing.metrics["empty"].value == 100
    assert nothing.metrics["off_target"].n == 0


def test_intervals_hold_the_score_and_are_reproducible(pairs):
    predictions = [e.tgt if i % 2 else e.src for i, e in enumerate(pairs)]
    first, second = (TranslationEvaluator(["bleu"], bootstrap=200).score(predictions, pairs) for _ in range(2))
    low, high = first.metrics["bleu"].ci95
    assert low < first.metrics["bleu"].value < high and first.metrics == second.metrics


def test_two_directions_are_listed_and_averaged(pairs):
    both = [*pairs[:20], *(e.reversed() for e in pairs[:20])]
    predictions = [*(e.tgt for e in pairs[:20]), *(e.tgt for e in pairs[:20])]
    report = TranslationEvaluator(["chrf"], bootstrap=0).score(predictions, both)
    one, other = report.metrics["chrf/de-en"].value, report.metrics["chrf/en-de"].value
    assert one == pytest.approx(100) and other < 50
    assert report.metrics["chrf"].value == pytest.approx((one + other) / 2)


def test_paired_bootstrap_tells_better_from_equal(pairs):
    good = [e.tgt for e in pairs]
    worse = [e.tgt.rsplit(" ", 1)[0] for e in pairs]
    evaluator = TranslationEvaluator(bootstrap=300)
    clear = evaluator.compare(worse, good, pairs, "chrf")
    assert clear["difference"] > 0 and clear["p"] < 0.05 and clear["ci95"][0] > 0
    same = evaluator.compare(good, list(good), pairs)
    assert same["difference"] == 0 and same["p"] > 0.9


def test_over_generation_and_terms():
    terms = (("Welle", "shaft"),)
    examples = [
        TranslationExample("Die Welle dreht sich.", "The shaft turns.", "de", "en", terms),
        TranslationExample("Eine Welle.", "A shaft.", "de", "en", terms),
        TranslationExample("Noch eine Welle.", "Another shaft.", "de", "en", terms),
    ]
    predictions = ["The shaft turns.", "A wave. " + "And so on. " * 10, "Another shafts.\nGerman: more"]
    report = TranslationEvaluator(["terms", "over_generation"], bootstrap=0).score(predictions, examples)
    assert report.metrics["terms"].value == pytest.approx(100 / 3) and report.metrics["terms"].n == 3
    assert report.metrics["over_generation"].value == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    "term, text, code, found",
    [
        ("shaft", "The shaft turns.", "en", True), ("shaft", "The shafts turn.", "en", False),
        ("shaft", "Shaft and gear.", "en", True), ("shaft", "The Shaft.", "en", False),
        ("NATO", "nato", "en", False), ("C++", "Use C++ here", "en", True), ("轴", "这根轴在转。", "zh", True),
    ],
)  # fmt: skip
def test_term_hits(term, text, code, found):
    assert has_term(term, text, code) is found


def test_skips_say_why(pairs):
    report = TranslationEvaluator(["terms", "comet"], bootstrap=0).score([e.tgt for e in pairs], pairs)
    assert "no example carries terms" in report.metrics["terms"].skipped
    assert "no checkpoint given" in report.metrics["comet"].skipped
    gone = TranslationEvaluator(["comet"], comet="/nowhere/model.ckpt").score([e.tgt for e in pairs], pairs)
    assert "no COMET checkpoint at /nowhere/model.ckpt" in gone.metrics["comet"].skipped
    assert not detectable("wo")
    wolof = [TranslationExample("Hello.", "Salaam.", "en", "wo")]
    assert (
        "does not know wo"
        in TranslationEvaluator(["off_target"]).score(["Salaam."], wolof).metrics["off_target"].skipped
    )


def test_without_sacrebleu_its_metrics_are_skipped_and_the_rest_is_computed(pairs, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    report = TranslationEvaluator(bootstrap=0).score([e.tgt for e in pairs], pairs)
    assert "sacrebleu is not installed" in report.metrics["bleu"].skipped and report.metrics["ter"].value is None
    assert report.metrics["empty"].value == 0 and report.failures == [] and len(report.rows) == len(pairs)


def test_comet_runs_in_its_own_process(tmp_path, pairs):
    """A stand-in package plays COMET: what is tested is the process, the rows and the way back."""
    (tmp_path / "comet").mkdir()
    (tmp_path / "comet" / "__init__.py").write_text(
        "import types\n"
        "def load_from_checkpoint(path, local_files_only):\n"
        "    space = types.SimpleNamespace\n"
        "    score = lambda row: float(row['mt'] == row['ref'])\n"
        "    return space(predict=lambda rows, batch_size, gpus: space(scores=[score(row) for row in rows]))\n"
    )
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.touch()
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    predictions = [e.tgt if i < 15 else "x" for i, e in enumerate(pairs)]
    evaluator = TranslationEvaluator(["comet"], comet=checkpoint, comet_python=str(wrapper), bootstrap=100)
    metric = evaluator.score(predictions, pairs).metrics["comet"]
    assert metric.value == pytest.approx(15 / 60) and metric.ci95[0] < 0.25 < metric.ci95[1]
    broken = TranslationEvaluator(["comet"], comet=checkpoint, bootstrap=100).score(predictions, pairs)
    assert "No module named 'comet'" in broken.metrics["comet"].skipped


def test_bad_input(pairs):
    evaluator = TranslationEvaluator(["chrf"])
    with pytest.raises(DataError, match="59 predictions for 60 examples.*59 has no partner"):
        evaluator.score([e.tgt for e in pairs][:-1], pairs)
    with pytest.raises(DataError, match="empty"):
        evaluator.score([], [])
    with pytest.raises(DataError, match="example 1 has no reference"):
        evaluator.score(["a", "b"], [pairs[0], TranslationExample("x", None, "de", "en")])
    with pytest.raises(ConfigError, match="unknown metric 'blue'"):
        TranslationEvaluator(["blue"])
    with pytest.raises(DataError, match="one target language"):
        evaluator.compare(["a", "b"], ["a", "b"], [pairs[0], pairs[0].reversed()])


def test_a_report_survives_its_file(tmp_path, pairs):
    report = TranslationEvaluator(["chrf", "terms"], bootstrap=20).score([e.src for e in pairs], pairs)
    report.save(tmp_path)
    again = Report.load(tmp_path)
    assert again.metrics == report.metrics and again.rows == report.rows and again.failures == report.failures
    assert [row["chrf"] for row in report.failures] == sorted(row["chrf"] for row in report.failures)
    assert len(report.failures) == 20
