"""Settings of each llama.cpp engine, wherever they stand: `[engine]` and what belongs to it, and `[engines.NAME]`.

The code below the daemon knows one engine and names its settings as `[engine]` has them. named() gives its errors the
names that the user wrote. Decides only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from core.errors import ConfigError
from core.words import AUTO, Tier
from engines.llama import LlamaSettings, check_settings
from engines.lora import AdapterSettings
from scheduler.placing import KvSettings
from scheduler.speculation import SpeculationSettings
from tiers.routing import LLAMA

NO_MODEL = Path()


@dataclass(frozen=True, slots=True)
class FurtherEngine(LlamaSettings):
    """Further engines, each with a model, a thread and KV of its own: `[engines.NAME]`, where NAME is yours. Routes
    name it (`routes.KIND.engine`). It has every setting of `[engine]`, and `[engines.NAME.kv]`,
    `[engines.NAME.adapters]` and `[engines.NAME.speculation]` with the settings of `[scheduler.kv]`, `[adapters]` and
    `[speculation]`. A setting that it leaves out has its default, whatever `[engine]` says.
    """

    model: Path = NO_MODEL
    kv: KvSettings = field(default_factory=KvSettings)
    adapters: AdapterSettings = field(default_factory=AdapterSettings)
    speculation: SpeculationSettings = field(default_factory=SpeculationSettings)


class EngineSetup(NamedTuple):
    """All settings of one engine, by its name in routes."""

    name: str
    settings: LlamaSettings
    kv: KvSettings
    adapters: AdapterSettings
    speculation: SpeculationSettings

    @property
    def section(self) -> str:
        """The section that its settings stand in."""
        return "engine" if self.name == LLAMA else f"engines.{self.name}"


def setups(first: EngineSetup, further: Mapping[str, FurtherEngine]) -> dict[str, EngineSetup]:
    """Every engine that has settings, by name. `first` is that of `[engine]`."""
    others = (EngineSetup(name, e, e.kv, e.adapters, e.speculation) for name, e in further.items())
    return {first.name: first, **{one.name: one for one in others}}


@contextlib.contextmanager
def named(setup: EngineSetup) -> Iterator[None]:
    """Gives a ConfigError from within the names that this engine's settings have."""
    try:
        yield
    except ConfigError as error:
        if setup.name == LLAMA:
            raise
        raise ConfigError(renamed(str(error), setup.section)) from error


def renamed(text: str, section: str) -> str:
    """A message about `[engine]` and its sections as one about another engine's."""
    text = re.sub(r"^(model|engine|adapters):", lambda m: f"{section}{'' if m[1] == 'engine' else '.' + m[1]}:", text)
    text = re.sub(r"(?<![\w.])engine\.(?=[a-z_])", f"{section}.", text)
    text = re.sub(r"(?<![\w.])scheduler\.kv\.", f"{section}.kv.", text)
    text = re.sub(r"(?<![\w.])(adapters|speculation)\.(?=[a-z_])", rf"{section}.\1.", text)
    return text.replace("with --model", f"as {section}.model").replace("(--model)", f"({section}.model)")


def check_setup(setup: EngineSetup) -> None:
    """Raises ConfigError for a setting that is out of its bounds, or does not fit the others of its engine."""
    settings, kv = setup.settings, setup.kv
    with named(setup):
        if settings.model == NO_MODEL:
            raise ConfigError("engine.model: is missing; give the GGUF file of the model")
        check_settings(settings)
        check_kv(settings.sequences, kv)
        check_speculation(setup.speculation)


def check_kv(sequences: int, kv: KvSettings) -> None:
    """Raises ConfigError when these sequences (AUTO: not known yet) leave too few for NPCs, with prefixes and lanes."""
    few = sequences != AUTO and sequences - kv.prefixes - kv.lanes < 2
    if kv.prefixes < 1 or kv.lanes < 1 or few:
        raise ConfigError(
            f"engine.sequences: {sequences} must exceed scheduler.kv.prefixes ({kv.prefixes}) + "
            f"scheduler.kv.lanes ({kv.lanes}) by at least 2"
        )


def check_speculation(s: SpeculationSettings) -> None:
    """Raises ConfigError for a setting that is out of its bounds."""
    if s.drafts not in ("off", "ngram", "model"):
        raise ConfigError(f"speculation.drafts: '{s.drafts}', must be off, ngram or model")
    if (s.drafts == "model") != bool(s.draft_model):
        raise ConfigError(
            "speculation.draft_model: a GGUF file belongs to speculation.drafts = 'model'; give both or none"
        )
    if unknown := set(s.tiers) - {tier.name.lower() for tier in Tier}:
        raise ConfigError(f"speculation.tiers: '{min(unknown)}', must be gold, silver or bronze")
    if not 1 <= s.tokens_max <= 16:
        raise ConfigError(f"speculation.tokens_max: {s.tokens_max}, must be 1 to 16")
    if not 1 <= s.works_max <= 64:
        raise ConfigError(f"speculation.works_max: {s.works_max}, must be 1 to 64")
    if not 1 <= s.match_min <= s.match_max:
        raise ConfigError(f"speculation.match_min: {s.match_min}, must be 1 to speculation.match_max ({s.match_max})")
    if s.trial_steps < 1 or s.retry_s <= 0:
        raise ConfigError("speculation.trial_steps must be 1 or more, speculation.retry_s more than 0")


def check_names(further: Collection[str]) -> None:
    """Raises ConfigError for a name that another engine has."""
    if LLAMA in further:
        raise ConfigError(f"engines.{LLAMA}: '{LLAMA}' is the engine of [engine]; give its settings there")
