"""docs/SETTINGS.md agrees with the code: every setting, its variable, its default, its bounds, and one sentence."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from daemon.config import Config, load
from engines.llama.settings import check_settings
from engines.lora import check_folder
from tools import settings
from tools.settings import Setting

PAGE = (settings.ROOT / settings.PAGE).read_text()
SHOWN = [setting for section in settings.sections(Config()) for setting in section.settings]


def every(of: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, sentence) of each field that is no section."""
    says = settings.sentences(type(of))
    for each in dataclasses.fields(of):
        value, name = getattr(of, each.name), f"{path}{each.name}"
        if dataclasses.is_dataclass(value):
            yield from every(value, f"{name}.")
        elif not isinstance(value, Mapping):  # sections whose names the user chooses have a paragraph
            yield name, says.get(each.name, "")


def test_the_page_is_fresh_and_every_setting_has_a_sentence() -> None:
    """`make settings` would change nothing."""
    assert settings.problems() == []


def test_a_stale_page_is_found(tmp_path: Path) -> None:
    """That is a missing page, or one with a letter changed by hand."""
    (tmp_path / "docs").mkdir()
    assert settings.problems(tmp_path) == [f"{settings.PAGE}: stale; run `make settings`"]
    (tmp_path / settings.PAGE).write_text(PAGE)
    assert settings.problems(tmp_path) == []
    (tmp_path / settings.PAGE).write_text(PAGE.replace("255", "256", 1))
    assert settings.problems(tmp_path) == [f"{settings.PAGE}: stale; run `make settings`"]


@dataclass
class _Sails:
    """The setting of the sails."""

    reefs: int = 0
    """Reefs in the main sail. From 0 to 3."""
    hoist_ms: float = 1.5


@dataclass
class _Ship:
    crew: int = 3
    """Sailors on board."""
    sails: _Sails = field(default_factory=_Sails)


def test_a_setting_without_a_sentence_is_found() -> None:
    """The fault names the setting."""
    ship: Any = _Ship()
    assert settings.without_sentence(ship) == ["sails.hoist_ms: needs a sentence, in a docstring under its field"]


def test_a_sentence_stands_in_the_code() -> None:
    """It is the docstring under a field, without its bounds and the unit that the name ends with."""
    ship: Any = _Ship()
    (section,) = settings.sections(ship)
    assert section.intro == "The setting of the sails."
    assert section.settings == [
        Setting("sails.reefs", "integer, 0 to 3", "0", "Reefs in the main sail."),
        Setting("sails.hoist_ms", "number, ms", "1.5", ""),
    ]


def test_the_page_has_every_setting() -> None:
    """Each has its name and its variable. Only settings that cannot be given are left out."""
    missing = []
    for name, says in every(Config()):
        section, _, rest = name.partition(".")
        if stands := settings.MEMBERS.get(section):
            assert f"| `{rest.partition('.')[0]}` |" in PAGE
            name = f"{section}.{stands}.{rest.partition('.')[2]}"
        if f"| `{name}`<br>`{settings.variable(name)}` |" not in PAGE:
            missing.append(name)
            assert says.startswith(settings.INTERNAL), name
    assert missing == ["memory.recent.url", "memory.archive.url", "caps.bark"]


@pytest.mark.parametrize("name", ["memory.recent.url", "memory.archive.url", "caps.bark"])
def test_a_setting_that_is_not_on_the_page_cannot_be_given(name: str) -> None:
    """It is refused with the name of the effective setting."""
    with pytest.raises(ConfigError, match=f"{name}: give it as "):
        load(None, [f"{name}={'7' if name == 'caps.bark' else 'redis://x'}"], {})


def test_every_variable_and_set_form_sets_its_setting() -> None:
    """A default in the page's form is read back as that default, from the environment and from --set."""
    for setting in SHOWN:
        if setting.name != "engine.model":  # the page has its path in the project
            written = "" if setting.default == '""' else setting.default
            assert load(None, [f"{setting.name}={written}"], {setting.variable: written}) == with_folder(setting.name)


def with_folder(name: str) -> Config:
    """The defaults, with the home folder in place of ~ in paths."""
    config = Config()
    if name != "memory.folder":
        return config
    return dataclasses.replace(
        config, memory=dataclasses.replace(config.memory, folder=config.memory.folder.expanduser())
    )


@pytest.mark.parametrize("setting", [s for s in SHOWN if " to " in s.kind], ids=lambda setting: setting.name)
def test_a_value_beyond_the_bounds_of_the_page_is_refused(setting: Setting, tmp_path: Path) -> None:
    """Values below the lower bound and above the upper one are refused."""
    least, most = (float(bound) for bound in setting.kind.rpartition(", ")[2].split(" to "))
    for beyond in (least - 1, most + 1):
        number = f"{beyond:.0f}" if setting.kind.startswith("integer") else f"{beyond:f}"
        with pytest.raises(ConfigError, match=setting.name.rpartition(".")[2]):
            check_all(f"{setting.name}={number}", tmp_path)


def check_all(assignment: str, adapters: Path) -> None:
    """All checks of settings: those of config.load, and those that the engine does before it opens anything."""
    config = load(None, [assignment], {})
    check_settings(config.engine)
    check_folder(dataclasses.replace(config.adapters, folder=str(adapters)))
