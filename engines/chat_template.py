"""The chat template that a model is used with: its file's own, or the one that `engine.chat_template` names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.files import from_home
from prompts.formats import FORMATS

SETTING = "engine.chat_template"
BYTES_MAX = 1 << 20


def chosen(setting: str, own: str) -> str:
    """The template's text: `own` where the setting is empty, a format by its name, or the content of a file.

    Of a tokenizer_config.json it is the value of its chat_template. Raises ConfigError for anything else.
    """
    if not setting:
        return own
    if setting in FORMATS:
        return FORMATS[setting]
    path = from_home(setting, SETTING)
    if not path.is_file():
        raise ConfigError(f"{SETTING}: '{setting}' is no file, and no format of these: {', '.join(sorted(FORMATS))}")
    try:
        if path.stat().st_size > BYTES_MAX:
            raise ConfigError(f"{SETTING}: {path} has more than {BYTES_MAX >> 10} KiB; give a chat template (Jinja)")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{SETTING}: {path} cannot be read ({error.strerror}); let npcd's user read it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{SETTING}: {path} is no text in UTF-8; give a chat template (Jinja)") from error
    if path.suffix == ".json":
        text = _of_json(path, text)
    if not text.strip():
        raise ConfigError(f"{SETTING}: {path} is empty; give a chat template (Jinja), or 'plain' for none")
    return text


def _of_json(path: Path, text: str) -> str:
    """The chat template in a tokenizer_config.json; of several the one named "default". Raises ConfigError."""
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{SETTING}: {path} is no JSON ({error})") from error
    found = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise ConfigError(f"{SETTING}: {path} has no chat_template; give its tokenizer_config.json, or a Jinja file")
    return found
