"""The options of the encoder's edit. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from core.config.schema import key
from core.errors import ConfigError


@dataclass
class EncoderOptions:
    """The encoder that stands under the language model, and how it is given a text."""

    path: str = key("embedded", "folder, run or hub id of a translation model, of which the encoder is taken")
    template: str = key("{text}", "what the encoder reads, with {text} and {lang}")
    codes: dict[str, str] = key({}, "language in the data → the tokenizer's code for it, e.g. {en: eng_Latn}")

    def __post_init__(self) -> None:
        where = "model.edits, mt_encoder"
        try:
            made = self.template.format(text="\0", lang="")
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"the template '{self.template}' cannot be filled in: {error!r}",
                where=f"{where}.template",
                hint="its fields are {text} and {lang}",
            ) from error
        if "\0" not in made:
            raise ConfigError(
                f"the template '{self.template}' has no place for the text",
                where=f"{where}.template",
                hint="e.g. '{text}' or '[{lang}] {text}'",
            )
        for lang, code in self.codes.items():
            if not isinstance(code, str) or not code:
                raise ConfigError(f"the code of '{lang}' is {code!r}", where=f"{where}.codes", hint="a name in quotes")
        if not self.path:
            raise ConfigError("the encoder has no path", where=f"{where}.path", hint="a folder, a run or a hub id")
