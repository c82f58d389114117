"""What carries loss is the target and one end of text, whatever the tokenizer and the template.

Every row is encoded for training by eight tokenizers × all templates × both modes. The trained ids must read as the
target followed by the end of text, the ids before them must be those of serving, and nothing else is trained.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.tokenizers import eight

AWKWARD = [
    ("Um 8.30 Uhr kommt sie.", "She comes at 8:30."),
    ("»Nein«, sagte er.", '"No," he said.'),
    ("Es kostet 1.234,56 €.", "It costs €1,234.56."),
    ("a", "b"),
    ("Übung macht den Meister!", "Practice makes perfect!"),
    ("Er schrieb {name} und 100 %.", "He wrote {name} and 100%."),
]


def measure(setting: Setting) -> Measured:
    """Share of encodings that are right, in percent."""
    from apps.translation.prompts import TEMPLATES
    from core.data.embedded import pairs

    rows = [*AWKWARD, *pairs("dev", limit=20 if setting.quick else 200)]
    tokenizers = eight(texts(pairs("train", limit=600)))
    right, total, wrong, straddled = 0, 0, Counter(), Counter()
    for name, tokenizer in tokenizers.items():
        for template in TEMPLATES.values():
            for mode in ("offsets", "pieces"):
                for src, tgt in rows:
                    fault, crossed = check(tokenizer, template, mode, src, tgt)
                    total, right = total + 1, right + (fault is None)
                    straddled[f"{name}, {template.name}"] += crossed
                    if fault:
                        wrong[f"{name}, {template.name}, {mode}: {fault}"] += 1
    counts = {"tokenizers": len(tokenizers), "templates": len(TEMPLATES), "encodings": total}
    details = {**counts, "wrong": dict(wrong.most_common(10)), "straddled": dict(+straddled)}
    return Measured(100 * right / total, right == total, details=details)


def texts(known: Any) -> list[str]:
    """Text that holds every character of the rows and of the templates."""
    from apps.translation.prompts import TEMPLATES

    frame = ["".join(segment.text for segment in template.segments) for template in TEMPLATES.values()]
    return [text for pair in [*known, *AWKWARD] for text in pair] + [*frame, "English German de en"] * 4


def check(tokenizer: Any, template: Any, mode: str, src: str, tgt: str) -> tuple[str | None, bool]:
    """What is wrong with one encoding, or None; and whether a token crossed the border."""
    from apps.translation import TranslationExample
    from apps.translation.prompts import fields
    from core.data.encode import IGNORE, encode, encode_prompt
    from core.data.segments import render

    segments = render(template, fields(TranslationExample(src, tgt, "de", "en")))
    row = encode(segments, tokenizer, mode=mode)
    trained = [label for label in row.labels if label != IGNORE]
    start = len(row.labels) - len(trained)
    if any(label != IGNORE for label in row.labels[:start]) or row.input_ids[start:] != trained:
        return "trained tokens are not the end of the row", row.straddled
    if trained.count(tokenizer.eos_token_id) != 1 or trained[-1] != tokenizer.eos_token_id:
        return "end of text is not trained exactly once, at the end", row.straddled
    if row.input_ids[:start] != encode_prompt(segments, tokenizer, mode):
        return "the prompt differs from serving", row.straddled
    read = tokenizer.decode(trained[:-1], clean_up_tokenization_spaces=False)
    if read.strip(" ") != tgt:
        return "the trained tokens do not read as the target", row.straddled
    return None, row.straddled


BAR = Bar(
    "translation.T9",
    "masks and end of text, 8 tokenizers × all templates",
    "% right",
    "100 %",
    "cpu",
    0.5,
    measure,
)
