"""Names of people and towns, items and homes: more combinations than any training sees, and a held-out part that none
sees.

The name alone decides if it is held out for the evaluation (`held`), so the training can never meet it.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from random import Random

from models.corpus import words

_NAME_HEADS = (
    "Al An Bel Ber Cor Da El Ed Fen Ger Hal Il Jo Ka Lor Ma Mir Ne Od Pel Ro Sel Tam Ul Ves Wil Yor Zan Ar Bra Cas Dor Er "
    "Fal Gri Hed In Jor Kel Li Mor Nor Os Pra Qui Ras Sti Tor Ur Vla Wen Xa Yl Zo"
).split()
_NAME_MIDDLES = "a ba da de di do e ga go i ka la le li lo ma me mo na ni o ra ri ro sa ti to va vi".split()
_NAME_TAILS = "a an ric da en fred gar ia in la mund na o rik sa ten us win wyn ya bert dric lin mar nor ra s th vin x zar".split()
_COMMON_NAMES = (
    "Mira Oda Tom Greta Anton Lena Bruno Edda Karl Ilse Marta Otto Vera Hugo Nina Rolf Sara Emil Dora Felix Jonas Clara "
    "Peter Ruth Anna Wilna Elfred Paul Agnes Simon Judith Martin Irma Albert Helga Konrad Alma Victor Berta Ivan Lucia Oscar"
).split()
_TOWN_HEADS = (
    "Ash Black Bram Corn Dun Elm Fal Grim Hal Hollow Iron Kes Lang Mor Nether Oak Raven Salt Stone Thorn Under Vel Wil Wolf "
    "Amber Birch Cold Deep Frost Gold Hart King Lark Mill Owl Red Silver Storm Win Yar"
).split()
_TOWN_TAILS = "bury ford mere wick dale gate ham stead moor fall bridge hollow brook field by cliff den haven holt ley mouth ridge shore well".split()

_ITEM_KINDS = (
    "silver black bone red iron glass moon gold old blue broken wooden copper white green carved heavy painted twisted "
    "cracked amber pearl ivory rusty royal stolen"
).split()
_ITEM_THINGS = (
    "bell crown flute book key eye blade ring sword stone mirror mask horn lamp cup comb box coin needle dagger rope chain "
    "locket brooch candle map letter doll shield bowl"
).split()
_HOME_KINDS = "old north white broken upper lower red quiet stone drowned burnt little east west hidden ruined long black green cold".split()
_HOME_PLACES = (
    *words.PLACES,
    *"tower bakery barn harbour library inn stable smithy cave manor bridge ferry shrine garden hall well bath tomb".split(),
)
ITEMS = (*_ITEM_KINDS, *_ITEM_THINGS)  # every word that an item's or a home's name may have
HOMES = (*_HOME_KINDS, *_HOME_PLACES)
_LETTERS = ("bcdfghjklmnprstvwz", "aeiou")


def held(name: str) -> bool:
    """True when this name, item or order of words is held out for the evaluation: one in eight is."""
    return blake2b(name.encode(), digest_size=1).digest()[0] < 32


def drawn(make: Callable[[], str], unseen: bool) -> str:
    """A value of `make` from the held-out part, or from the other part."""
    while held(name := make()) != unseen:
        pass
    return name


def person_name(rng: Random, unseen: bool = False) -> str:
    """A name: mostly of syllables, at times a common one, at times any pronounceable letters."""
    return drawn(lambda: _person(rng), unseen)


def _person(rng: Random) -> str:
    way = rng.random()
    if way < 0.2:
        return rng.choice(_COMMON_NAMES)
    if way < 0.35:
        letters = (rng.choice(_LETTERS[i % 2]) for i in range(rng.randint(4, 8)))
        return "".join(letters).capitalize()
    middle = rng.choice(_NAME_MIDDLES) if rng.random() < 0.5 else ""
    return rng.choice(_NAME_HEADS) + middle + rng.choice(_NAME_TAILS)


def town_name(rng: Random, unseen: bool = False) -> str:
    """A town."""
    return drawn(lambda: rng.choice(_TOWN_HEADS) + rng.choice(_TOWN_TAILS), unseen)


def item_name(rng: Random, unseen: bool = False) -> str:
    """An item without its article: "silver bell"."""
    return drawn(lambda: f"{rng.choice(_ITEM_KINDS)} {rng.choice(_ITEM_THINGS)}", unseen)


def home_name(rng: Random, unseen: bool = False) -> str:
    """A place to live or to lose things, without its article. The training meets plain places, too."""
    if rng.random() < 0.4:
        return rng.choice(_HOME_PLACES)
    return drawn(lambda: f"{rng.choice(_HOME_KINDS)} {rng.choice(_HOME_PLACES)}", unseen)
