"""The translation demo without a browser: it builds, every handler answers, and a client reaches it over HTTP."""

from __future__ import annotations

import json
import zipfile

import pytest

gr = pytest.importorskip("gradio", reason="gradio is not installed")

import demos  # noqa: E402
from apps.translation import TranslationPipeline, load_data  # noqa: E402
from core.config.files import write_json  # noqa: E402
from core.errors import AppInputError, ConfigError, DataError, GraftError  # noqa: E402
from core.inference.engines.script import ScriptEngine  # noqa: E402
from demos import look, translation  # noqa: E402


def upper(prompt: str) -> str:
    return " " + prompt.split("\n")[-2].partition(": ")[2].upper()


@pytest.fixture
def page():
    return translation.Page(TranslationPipeline(ScriptEngine(upper), None))


def test_the_page_builds_with_both_tabs_and_stable_endpoints(page):
    blocks = translation.build(page.pipeline)
    names = {f.api_name for f in blocks.fns.values() if f.api_visibility == "public"}
    assert {"translate", "evaluate", "evaluate_sample"} <= names
    labels = {block.label for block in blocks.blocks.values() if isinstance(block, gr.Tab)}
    assert {"Translate", "Evaluate"} <= labels
    assert len(translation.EXAMPLES) == 3


def test_translate_streams_and_ends_with_what_happened(page):
    steps = list(page.translate("Guten Tag. Ja.", "de", "en"))
    assert [text for _, text, _ in steps][-1] == "GUTEN TAG. JA."
    texts = [text for _, text, _ in steps]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:]))
    happened = steps[-1][2]
    assert "Translate this from German to English" in happened and "<mark>GUTEN TAG.</mark>" in happened
    assert "tokens/s" in happened and steps[-1][0] == ""


def test_translate_with_a_model_counts_tokens():
    with TranslationPipeline.from_pretrained("any", engine="tiny") as pipeline:
        for beams in (1, 2):
            *_, last = translation.Page(pipeline).translate("Ja.", "de", "en", beams=beams, max_new_tokens=8)
            assert '<div class="v">8</div><div class="k">new tokens</div>' in last[2]
            assert "cut at max_new_tokens" in last[0]
        assert translation.describe(pipeline)[1].endswith("M parameters")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("Hallo", "de", "de"), "both German"),
        (("Hallo", "de", "xq"), "unknown language"),
        (("Hallo", "de", "en", "no sign"), "line 1 of the terms"),
    ],
)
def test_translate_shows_the_librarys_message(page, arguments, words):
    *_, (banner, text, happened) = page.translate(*arguments)
    assert words in banner and 'class="graft-banner error"' in banner and text == "" and "Nothing was sent" in happened


def test_an_empty_text_is_a_note_and_markup_is_escaped(page):
    *_, (banner, text, _) = page.translate("", "de", "en")
    assert "the source text is empty" in banner and "note" in banner and text == ""
    *_, (_, _, happened) = page.translate("<script>x</script>", "de", "en")
    assert "<script>" not in happened.lower() and "&lt;script&gt;" in happened
    assert "<b>&lt;i&gt;" in look.banner(GraftError("<i>"))


@pytest.fixture
def files(tmp_path):
    rows = load_data(reader="embedded", split="test", src="de", tgt="en", limit=30)
    texts = {
        "hyp": [e.tgt.replace("the", "a") for e in rows],
        "ref": [e.tgt for e in rows],
        "src": [e.src for e in rows],
    }
    for name, lines in texts.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_evaluate_text_files(page, files):
    paths = [str(files / f"{name}.txt") for name in ("hyp", "ref", "src")]
    banner, summary, metrics, plot, worst, archive = page.evaluate(*paths, None, "de", "en")
    assert banner == "" and ">30<" in summary and plot.count('class="bar"') == 20
    table = {row[0].split()[0]: row for row in metrics}
    assert 10 < float(table["bleu"][1]) < 100 and "tok:13a" in table["bleu"][4]
    assert table["terms"][1] == "–" and "skipped" in table["terms"][4]
    assert len(worst) == 20 and [row[0] for row in worst] == sorted(row[0] for row in worst)
    with zipfile.ZipFile(archive) as bundle:
        assert json.loads(bundle.read("report.json"))["primary"] == "bleu"
        assert len(bundle.read("predictions.jsonl").splitlines()) == 30


def test_evaluate_without_sources_and_with_the_wrong_direction_says_so(page, files):
    hyp, ref = (str(files / f"{name}.txt") for name in ("hyp", "ref"))
    assert "no sources were given" in page.evaluate(hyp, ref, None, None, "de", "en")[0]
    assert "is the direction right?" in page.evaluate(hyp, ref, None, None, "en", "de")[0]


def test_evaluate_jsonl_with_predictions_or_translated_here(page, files):
    rows = [{"src": "Eins.", "tgt": "EINS.", "prediction": "EINS."}, {"src": "Zwei.", "tgt": "TWO.", "prediction": "x"}]
    path = files / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    worst = page.evaluate(None, None, None, str(path), "de", "en")[4]
    assert [row[3] for row in worst] == ["x", "EINS."]
    path.write_text("\n".join(json.dumps({k: r[k] for k in ("src", "tgt")}) for r in rows), encoding="utf-8")
    worst = page.evaluate(None, None, None, str(path), "de", "en")[4]
    assert {row[3] for row in worst} == {"EINS.", "ZWEI."}


def test_evaluate_sample_translates_and_scores(page):
    banner, summary, metrics, *_ = page.evaluate_sample("de", "en")
    assert banner == "" and ">50<" in summary and metrics
    assert "German and English" in page.evaluate_sample("fr", "en")[0]


def test_evaluate_bad_uploads(page, files):
    hyp, ref = files / "hyp.txt", files / "ref.txt"
    assert "nothing to score yet" in page.evaluate(None, None, None, None, "de", "en")[0]
    hyp.write_text("one\n")
    assert "1 predictions for 30 examples" in page.evaluate(str(hyp), str(ref), None, None, "de", "en")[0]
    assert "1 sources for 30 references" in page.evaluate(str(ref), str(ref), str(hyp), None, "de", "en")[0]
    path = files / "rows.jsonl"
    path.write_text('{"src": "a", "tgt": "b", "prediction": "c"}\n{"src": "a", "tgt": "b"}\n')
    banner, *rest = page.evaluate(None, None, None, str(path), "de", "en")
    assert "only some rows have a prediction" in banner and "rows.jsonl:2" in banner and rest[-1] is None
    path.write_text("\n".join(['{"src": "a", "tgt": "b"}'] * 201))
    assert "at most 200" in page.evaluate(None, None, None, str(path), "de", "en")[0]


def test_read_upload_raises_what_the_handler_shows(page):
    with pytest.raises(AppInputError):
        page.read_upload(None, None, None, None, "de", "en")
    with pytest.raises(DataError, match="cannot read"):
        page.read_upload("/no/hyp", "/no/ref", None, None, "de", "en")


def test_the_histogram_counts_every_value_once():
    svg = look.histogram([0, 4.9, 50, 99.9, 100], low=0, high=100, bins=20, title="<t>")
    assert "0–5: 2" in svg and "50–55: 1" in svg and "95–100: 2" in svg and "&lt;t&gt;" in svg and "mean 51.0" in svg
    assert "mean" not in look.histogram([], low=0, high=100, bins=20, title="t")


def test_which_run_is_opened(tmp_path):
    assert demos.choose_run("translation", tmp_path) == "embedded"
    for name, app, status, created in [
        ("old", "translation", "done", 1), ("new", "translation", "done", 2),
        ("failed", "translation", "failed", 3), ("other", "lm", "done", 4),
    ]:  # fmt: skip
        (tmp_path / name / "model").mkdir(parents=True)
        write_json(tmp_path / name / "run.json", {"app": app, "status": status, "created": created})
    assert demos.choose_run("translation", tmp_path) == str(tmp_path / "new")
    with pytest.raises(ConfigError, match="no demo for 'translatoin'") as caught:
        demos.build("translatoin")
    assert "did you mean 'translation'" in caught.value.hint


def test_round_trip_over_http(page):
    client = pytest.importorskip("gradio_client")
    blocks = translation.build(page.pipeline)
    url = look.serve(blocks, port=0, block=False)
    try:
        answer = client.Client(url, verbose=False).predict(
            "Guten Tag.", "de", "en", "", True, 1, 64, api_name="/translate"
        )
        assert answer[1] == "GUTEN TAG."
    finally:
        blocks.close()


def test_a_taken_port_is_said_so(page):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(GraftError, match=f"cannot serve on port {port}"):
            look.serve(translation.build(page.pipeline), port=port, block=False)
