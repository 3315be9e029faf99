"""A world's language: checks that its tag is well-formed, names it in English for the prompt, and checks that the model
was trained on the world's words.

A tag is well-formed as RFC 5646 (BCP 47), section 2.1 says; the language itself need not exist.

A model made for npcd has every word that it was trained to act, feel and speak with as one token of its vocabulary,
with the space before it. So its vocabulary shows which words it knows. The vocabulary of another model does not.
Decides only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from core.errors import CallerError

DEFAULT = "en"
TAG_BYTES_MAX = 64
NAMED_MAX = 8  # words that a warning names
PROSE_WORDS_MAX = 200  # of each text that are looked at
PROSE_WORDS_MIN = 8  # fewer may all be names
KNOWN_SHARE_MIN = 0.5  # of the prose's words; text like that of the corpus has 0.9, other languages 0.1 to 0.3

_TAG = re.compile(
    r"""
    (?: (?: [a-z]{2,3} (?: -[a-z]{3} ){0,3} | [a-z]{4} | [a-z]{5,8} )   # language, with extlang
        (?: -[a-z]{4} )?                                                # script
        (?: - (?: [a-z]{2} | [0-9]{3} ) )?                              # region
        (?: - (?: [a-z0-9]{5,8} | [0-9][a-z0-9]{3} ) )*                 # variants
        (?: -[0-9a-wyz] (?: -[a-z0-9]{2,8} )+ )*                        # extensions
        (?: -x (?: -[a-z0-9]{1,8} )+ )?                                 # private use
      | x (?: -[a-z0-9]{1,8} )+
    )
    """,
    re.VERBOSE | re.ASCII,
)
_IRREGULAR = frozenset(
    "en-gb-oed i-ami i-bnn i-default i-enochian i-hak i-klingon i-lux i-mingo i-navajo i-pwn i-tao i-tay i-tsu "
    "sgn-be-fr sgn-be-nl sgn-ch-de".split()
)
# The English names of languages by their primary subtags. Another language is named by its tag.
_NAMES = dict(
    entry.split("=")
    for entry in (
        "af=Afrikaans ar=Arabic be=Belarusian bg=Bulgarian bn=Bengali ca=Catalan cs=Czech cy=Welsh da=Danish "
        "de=German el=Greek eo=Esperanto es=Spanish et=Estonian eu=Basque fa=Persian fi=Finnish fil=Filipino fr=French "
        "ga=Irish gl=Galician he=Hebrew hi=Hindi hr=Croatian hu=Hungarian hy=Armenian id=Indonesian is=Icelandic "
        "it=Italian ja=Japanese ka=Georgian kk=Kazakh ko=Korean la=Latin lt=Lithuanian lv=Latvian ms=Malay "
        "nb=Norwegian nl=Dutch nn=Norwegian no=Norwegian pl=Polish pt=Portuguese ro=Romanian ru=Russian "
        "sk=Slovak sl=Slovenian sq=Albanian sr=Serbian sv=Swedish sw=Swahili ta=Tamil th=Thai tl=Tagalog tr=Turkish "
        "uk=Ukrainian ur=Urdu vi=Vietnamese zh=Chinese"
    ).split()
)
_NAMELESS = frozenset({"und", "mul", "mis", "zxx"})  # no language that anybody could answer in
_WORD = re.compile(r"[^\W\d_]+")


def well_formed(tag: str) -> bool:
    """True if a text is a well-formed BCP 47 tag of at most TAG_BYTES_MAX bytes."""
    small = tag.lower() if tag.isascii() else ""
    return 0 < len(small) <= TAG_BYTES_MAX and (_TAG.fullmatch(small) is not None or small in _IRREGULAR)


def check_language(field: str, tag: str) -> str:
    """The tag, or the default for an empty one. Raises CallerError when it is no BCP 47 tag."""
    if not tag:
        return DEFAULT
    if len(tag) > TAG_BYTES_MAX:
        raise CallerError(field, f"has {len(tag)} characters, the limit is {TAG_BYTES_MAX}")
    if not well_formed(tag):
        better = tag.replace("_", "-")
        hint = f"write {better}" if well_formed(better) else "write one, or leave it empty"
        raise CallerError(field, f"{tag!r} is no BCP 47 tag as in en, pt-BR or zh-Hant; {hint}")
    return tag


def name_of(tag: str) -> str:
    """The name of a language as a prompt has it: "Finnish", or "Portuguese (pt-BR)" where there is more than one kind.
    Empty for English, which models answer in anyway, and for tags of no language.
    """
    primary, _, more = tag.lower().partition("-")
    if primary == DEFAULT or primary in _NAMELESS:
        return ""
    name = _NAMES.get(primary)
    if name is None:
        return f"the language with the tag {tag}"
    return f"{name} ({tag})" if more else name


def warnings_of(
    knows: Callable[[str], bool], actions: Sequence[str], emotions: Sequence[str], texts: Mapping[str, str]
) -> list[str]:
    """Words of a world that a model made for npcd was not trained on, as sentences; empty when it knows all of them.

    `knows` is True for a word that is one of the vocabulary's own.
    """
    out = []
    for what, words in (("actions", actions), ("emotions", emotions)):
        strange = [word for word in words if not all(map(knows, word.split()))]
        if strange:
            out.append(
                f"{what}: the model was not trained on {_named(strange)} ({len(strange)} of {len(words)}), and chooses "
                "among them nearly by chance; use words that it knows, or a chat model of your own (--model)"
            )
    for what, text in texts.items():
        known, count = _share(knows, text)
        if count >= PROSE_WORDS_MIN and known < KNOWN_SHARE_MIN * count:
            out.append(
                f"{what}: the model was trained on {known} of the first {count} words, so it hardly understands them; "
                "write them in words that it knows, or use a chat model of your own (--model)"
            )
    return out


def _share(knows: Callable[[str], bool], prose: str) -> tuple[int, int]:
    known = count = 0
    for found in _WORD.finditer(prose):
        if count == PROSE_WORDS_MAX:
            break
        count += 1
        known += knows(found.group())
    return known, count


def _named(words: Sequence[str]) -> str:
    named = ", ".join(f"'{word}'" for word in words[:NAMED_MAX])
    return named if len(words) <= NAMED_MAX else f"{named} and {len(words) - NAMED_MAX} more"


def texts_of(lore: str, descriptions: Iterable[str], personas: Iterable[str]) -> dict[str, str]:
    """As much of a world's texts as warnings_of() looks at, by what they are."""
    return {"lore": lore, "archetypes": _beginning(descriptions), "personas": _beginning(personas)}


def _beginning(texts: Iterable[str]) -> str:
    parts, count = [], 0
    for text in texts:
        if count >= PROSE_WORDS_MAX:
            break
        parts.append(text)
        count += len(text.split())
    return "\n".join(parts)
