"""The settings that environment variables name. A variable that nearly names one is refused, as --set would."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from core.errors import ConfigError

ENV_PREFIX = "NPCD_"
# Kubernetes gives each container these variables of every Service; one called "npcd" makes NPCD_PORT and others.
SERVICE_LINK = re.compile(r"NPCD_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
NEAR = 0.8  # of difflib's ratio
SHORT = 5  # letters; shorter words resemble too much by chance
NAMED_MAX = 3


def setting_of(name: str, settings: Sequence[str]) -> list[str] | None:
    """The keys of the setting that a variable names; None when it names none. `settings` are all dotted names.

    Keys that follow the rules are not looked up here. Raises ConfigError when they do not and a setting is near.
    """
    if name.startswith(ENV_PREFIX) and "__" in name:
        return name.removeprefix(ENV_PREFIX).lower().split("__")
    if not name.upper().startswith(ENV_PREFIX) or SERVICE_LINK.fullmatch(name):
        return None
    near = _near(name[len(ENV_PREFIX) :], settings)
    if near:
        meant = " or ".join(ENV_PREFIX + setting.upper().replace(".", "__") for setting in near)
        raise ConfigError(f"environment variable {name}: no setting has this name; did you mean {meant}?")
    return None


def _near(said: str, settings: Sequence[str]) -> list[str]:
    """Settings whose name, or its end ("model" of engine.model), is the same but for underscores, else looks alike."""
    ends: dict[str, list[str]] = {}
    for setting in settings:
        keys = setting.split(".")
        for first in range(len(keys)):
            ends.setdefault(_letters("".join(keys[first:])), []).append(setting)
    letters = _letters(said)
    found = [letters] if letters in ends else []
    if not found and len(letters) >= SHORT:
        found = difflib.get_close_matches(letters, [end for end in ends if len(end) >= SHORT], 1, NEAR)
    return ends[found[0]][:NAMED_MAX] if found else []


def _letters(text: str) -> str:
    return text.lower().replace("_", "")
