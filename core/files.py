"""Files that a person names: paths that begin at home, and TOML as editors on any system save it."""

from __future__ import annotations

import argparse
import os
import tomllib
from pathlib import Path
from typing import Any

from core.errors import ConfigError

TOML_BYTES_MAX = 16 << 20
UTF8_MARK = b"\xef\xbb\xbf"  # Windows editors put it before UTF-8
SAVE_AS_UTF8 = "save it as UTF-8 (Notepad: Save as, Encoding: UTF-8; PowerShell: Out-File -Encoding utf8)"

GIVE_A_PATH = "give a path, or leave it out"


def named_path(text: str) -> Path:
    """The path that a flag of a command line names. Raises ArgumentTypeError for an empty one, as an unset variable
    gives it: Path("") would be the folder where the command was started.
    """
    if not text:
        raise argparse.ArgumentTypeError(f"is empty; {GIVE_A_PATH}")
    return Path(text)


def from_home(path: Path | str, setting: str, helps: str = "give a path that does not begin with ~") -> Path:
    """The path, with ~ as the home folder. Raises ConfigError for `setting` where there is none, as for a user without
    a line in /etc/passwd.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        named, user = Path(path).parts[0], os.geteuid()
        why = (
            f"user {user} has no home folder: HOME is not set, and /etc/passwd has no line for it"
            if named == "~"
            else f"there is no user {named[1:]}"
        )
        raise ConfigError(f"{setting}: {path}: {why}; {helps}") from None


def check_readable(path: Path, message: str) -> None:
    """Raises ConfigError when a file cannot be read: `message`, with the file as {path} and the reason as {why}."""
    try:
        with open(path, "rb") as file:
            if not path.is_fifo():
                file.read(1)
    except OSError as error:
        raise ConfigError(message.format(path=path, why=error.strerror)) from error


def read_toml(path: Path, name: str) -> dict[str, Any]:
    """The table in a TOML file, with or without a byte order mark. Raises ConfigError that begins with `name` and says
    what is wrong with the file.
    """
    text = read_text(path, name)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: {error}") from error
    except RecursionError:
        raise ConfigError(f"{name}: tables or arrays are nested too deeply") from None


def read_text(path: Path, name: str) -> str:
    """The text of a TOML file, without a byte order mark. Raises ConfigError as read_toml()."""
    try:
        with open(path, "rb") as file:
            data = file.read(TOML_BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ConfigError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > TOML_BYTES_MAX:
        raise ConfigError(f"{name}: is longer than {TOML_BYTES_MAX >> 20} MiB, which no TOML file of npcd's is")
    data = data.removeprefix(UTF8_MARK)
    kind = not_text(data)
    if kind:
        raise ConfigError(f"{name}: {kind}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte, line = data[error.start], data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}: byte 0x{byte:02x} in line {line} is not UTF-8; {SAVE_AS_UTF8}") from error


def not_text(data: bytes) -> str:
    """The reason why these bytes of a file cannot be TOML, and what to do; empty when they can."""
    even, odd = data[0:2000:2].count(0), data[1:2000:2].count(0)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or max(even, odd) > 4 * min(even, odd) + len(data[:2000]) // 8:
        return f"is UTF-16 and must be UTF-8; {SAVE_AS_UTF8}"
    head = data[:2000]
    if 0 in head or sum(byte < 32 and byte not in b"\t\n\r\f" for byte in head) > len(head) // 20:
        kinds = ((b"GGUF", "a GGUF model"), (b"PK", "a ZIP archive"), (b"\x1f\x8b", "a gzip archive"))
        what = next((told for magic, told in kinds if data.startswith(magic)), "a binary file")
        return f"is {what} and no TOML; give a text file"
    return ""
