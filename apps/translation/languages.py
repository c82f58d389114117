"""One table of languages: BCP-47 code, English name, NLLB code; and the lookup that answers a wrong code helpfully.

Everything in the app speaks BCP-47 ("de", "pt-BR", "zh-Hant"). A lookup also takes a three-letter code ("deu"), an
NLLB code ("deu_Latn", Costa-jussà et al. 2022) or the English name, in any case, and drops a region that the table
does not tell apart ("de-AT" is "de"). This module knows nothing of models, prompts or metrics.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache

from core.errors import LanguageError

_TABLE = """
af|Afrikaans|afr_Latn
am|Amharic|amh_Ethi
ar|Arabic|arb_Arab
as|Assamese|asm_Beng
ast|Asturian|ast_Latn
az|Azerbaijani|azj_Latn
ba|Bashkir|bak_Cyrl
be|Belarusian|bel_Cyrl
bem|Bemba|bem_Latn
bg|Bulgarian|bul_Cyrl
bn|Bengali|ben_Beng
bo|Tibetan|bod_Tibt
bs|Bosnian|bos_Latn
ca|Catalan|cat_Latn
ckb|Central Kurdish|ckb_Arab
cs|Czech|ces_Latn
cy|Welsh|cym_Latn
da|Danish|dan_Latn
de|German|deu_Latn
dz|Dzongkha|dzo_Tibt
ee|Ewe|ewe_Latn
el|Greek|ell_Grek
en|English|eng_Latn
eo|Esperanto|epo_Latn
es|Spanish|spa_Latn
et|Estonian|est_Latn
eu|Basque|eus_Latn
fa|Persian|pes_Arab
fi|Finnish|fin_Latn
fil|Filipino|tgl_Latn
fj|Fijian|fij_Latn
fo|Faroese|fao_Latn
fr|French|fra_Latn
ga|Irish|gle_Latn
gd|Scottish Gaelic|gla_Latn
gl|Galician|glg_Latn
gn|Guarani|grn_Latn
gu|Gujarati|guj_Gujr
ha|Hausa|hau_Latn
he|Hebrew|heb_Hebr
hi|Hindi|hin_Deva
hr|Croatian|hrv_Latn
ht|Haitian Creole|hat_Latn
hu|Hungarian|hun_Latn
hy|Armenian|hye_Armn
id|Indonesian|ind_Latn
ig|Igbo|ibo_Latn
is|Icelandic|isl_Latn
it|Italian|ita_Latn
ja|Japanese|jpn_Jpan
jv|Javanese|jav_Latn
ka|Georgian|kat_Geor
kk|Kazakh|kaz_Cyrl
km|Khmer|khm_Khmr
kn|Kannada|kan_Knda
ko|Korean|kor_Hang
ku|Northern Kurdish|kmr_Latn
ky|Kyrgyz|kir_Cyrl
lb|Luxembourgish|ltz_Latn
lo|Lao|lao_Laoo
lt|Lithuanian|lit_Latn
lv|Latvian|lvs_Latn
mg|Malagasy|plt_Latn
mi|Maori|mri_Latn
mk|Macedonian|mkd_Cyrl
ml|Malayalam|mal_Mlym
mn|Mongolian|khk_Cyrl
mr|Marathi|mar_Deva
ms|Malay|zsm_Latn
mt|Maltese|mlt_Latn
my|Burmese|mya_Mymr
nb|Norwegian|nob_Latn
ne|Nepali|npi_Deva
nl|Dutch|nld_Latn
nn|Norwegian Nynorsk|nno_Latn
nso|Northern Sotho|nso_Latn
ny|Chichewa|nya_Latn
om|Oromo|gaz_Latn
or|Odia|ory_Orya
pa|Punjabi|pan_Guru
pl|Polish|pol_Latn
ps|Pashto|pbt_Arab
pt|Portuguese|por_Latn
pt-BR|Brazilian Portuguese|por_Latn
qu|Quechua|quy_Latn
ro|Romanian|ron_Latn
ru|Russian|rus_Cyrl
rw|Kinyarwanda|kin_Latn
sd|Sindhi|snd_Arab
si|Sinhala|sin_Sinh
sk|Slovak|slk_Latn
sl|Slovenian|slv_Latn
sm|Samoan|smo_Latn
sn|Shona|sna_Latn
so|Somali|som_Latn
sq|Albanian|als_Latn
sr|Serbian|srp_Cyrl
sr-Latn|Serbian (Latin)|srp_Latn
ss|Swati|ssw_Latn
su|Sundanese|sun_Latn
sv|Swedish|swe_Latn
sw|Swahili|swh_Latn
ta|Tamil|tam_Taml
te|Telugu|tel_Telu
tg|Tajik|tgk_Cyrl
th|Thai|tha_Thai
ti|Tigrinya|tir_Ethi
tk|Turkmen|tuk_Latn
tn|Tswana|tsn_Latn
tr|Turkish|tur_Latn
tt|Tatar|tat_Cyrl
ug|Uyghur|uig_Arab
uk|Ukrainian|ukr_Cyrl
ur|Urdu|urd_Arab
uz|Uzbek|uzn_Latn
vi|Vietnamese|vie_Latn
wo|Wolof|wol_Latn
xh|Xhosa|xho_Latn
yi|Yiddish|ydd_Hebr
yo|Yoruba|yor_Latn
yue|Cantonese|yue_Hant
zh|Chinese|zho_Hans
zh-Hant|Traditional Chinese|zho_Hant
zu|Zulu|zul_Latn
"""

# Codes that name a row of the table in another way: macrolanguages, old codes, and regions that imply a script.
_ALIASES = {
    "ara": "ar", "aze": "az", "est": "et", "fas": "fa", "prs": "fa", "lav": "lv", "mlg": "mg", "mon": "mn",
    "msa": "ms", "nep": "ne", "no": "nb", "nor": "nb", "orm": "om", "ori": "or", "pus": "ps", "sqi": "sq",
    "srp": "sr", "sr-cyrl": "sr", "swa": "sw", "tl": "fil", "tgl": "fil", "uzb": "uz", "iw": "he", "in": "id",
    "zho": "zh", "zh-hans": "zh", "zh-cn": "zh", "zh-tw": "zh-Hant", "zh-hk": "zh-Hant", "zho-cn": "zh",
    "zho-tw": "zh-Hant", "por-br": "pt-BR", "srp-latn": "sr-Latn", "srp-cyrl": "sr", "farsi": "fa",
    "mandarin": "zh", "simplified chinese": "zh",
}  # fmt: skip

UNSPACED = frozenset({"zh", "zh-Hant", "yue", "ja", "th", "lo", "km", "my", "bo", "dz"})
"""Languages written without spaces between words: lengths and term matches go by character."""


@dataclass(frozen=True)
class Language:
    """A language: BCP-47 `code`, English `name`, `nllb` code."""

    code: str
    name: str
    nllb: str

    @property
    def base(self) -> str:
        """The primary subtag: "pt" of "pt-BR"."""
        return self.code.partition("-")[0]


LANGUAGES: dict[str, Language] = {
    row.partition("|")[0]: Language(*row.split("|")) for row in _TABLE.strip().splitlines()
}


@lru_cache(maxsize=1)
def _index() -> dict[str, Language]:
    index: dict[str, Language] = {}
    for language in LANGUAGES.values():
        for key in (language.code, language.name, language.nllb, language.nllb.partition("_")[0]):
            index.setdefault(key.lower(), language)
    index.update({alias: LANGUAGES[code] for alias, code in _ALIASES.items()})
    return index


def language(code: str) -> Language:
    """The language for a code or English name.

    Raises:
        LanguageError: unknown, with the nearest codes and names.
    """
    index = _index()
    wanted = str(code).strip().lower()
    for key in (wanted, wanted.replace("_", "-"), wanted.replace("_", "-").partition("-")[0]):
        if key in index:
            return index[key]
    near = [index[key] for key in difflib.get_close_matches(wanted, index, n=6, cutoff=0.5)]
    listed = list(dict.fromkeys(f"{item.code} ({item.name})" for item in near))[:3]
    hint = "use a BCP-47 code such as de, en or pt-BR"
    raise LanguageError(
        f"unknown language '{code}'", hint=f"did you mean {', '.join(listed)}? {hint}" if listed else hint
    )


def direction(src: str, tgt: str) -> tuple[Language, Language]:
    """Both languages of a translation direction.

    Raises:
        LanguageError: one is missing or unknown, or both are the same.
    """
    for side, code in (("source", src), ("target", tgt)):
        if not code:
            raise LanguageError(f"no {side} language", hint='give both, e.g. src="de", tgt="en"')
    first, second = language(src), language(tgt)
    if first.code == second.code:
        raise LanguageError(
            f"source and target language are both {first.name} ({first.code})", hint="choose two different languages"
        )
    return first, second
