"""Results of a start that hold for the next one: the hash of a model, what tuning chose, what the stages took. Each is
a small file in one folder.

A file says what it is about. A file about something else, or a torn one, is as if it were not there. A folder
that cannot be written to costs the next start some seconds, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.llama import LlamaSettings
from engines.model_file import ModelFile

FILES_MAX = 64  # the oldest ones go
FORMAT = 1


class Kept:
    """Values by what they are about. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.troubles: list[str] = []  # files that could not be read or written since the last look, and why

    def get(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The values that were kept; empty without any."""
        if self._folder is None:
            return {}
        place = self._place(about)
        try:
            found = json.loads(place.read_text("utf-8"))
            values = found["values"]
            if found["format"] == FORMAT and found["about"] == dict(about) and isinstance(values, dict):
                return dict(values)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.troubles.append(f"{place}: {error.strerror}")
        except (ValueError, KeyError, TypeError):
            self.troubles.append(f"{place}: the file is damaged, and is ignored")
        return {}

    def put(self, about: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Keeps values. They replace the values that were kept about the same, in one step."""
        if self._folder is None:
            return
        place = self._place(about)
        part = place.with_suffix(".part")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            said = {"format": FORMAT, "about": dict(about), "values": dict(values)}
            part.write_text(json.dumps(said, indent=1) + "\n", "utf-8")
            part.replace(place)
            self._bound()
        except OSError as error:
            self.troubles.append(f"{place}: {error.strerror}")
            with contextlib.suppress(OSError):
                part.unlink()

    def _place(self, about: Mapping[str, Any]) -> Path:
        assert self._folder is not None, "there is a folder"
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
        return self._folder / f"{about['what']}-{name}.json"

    def _bound(self) -> None:
        assert self._folder is not None, "there is a folder"
        files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        for file in files[:-FILES_MAX]:
            file.unlink(missing_ok=True)


# -- hashes ------------------------------------------------------------------------------------------------------------


def hash_of(file: ModelFile, kept: Kept) -> str:
    """The model's SHA-256. The first time it reads all bytes: a second for each GB on one core, or as long as the disk
    takes. Later it reads none: the kernel notes every change of a file, so a file with the same number, size and times
    has the same bytes.
    """
    about = {"what": "hash", "parts": [_unchanged(part) for part in file.parts]}
    known = kept.get(about).get("sha256")
    if isinstance(known, str) and len(known) == 64:
        return known
    sha256 = file.sha256()
    kept.put(about, {"sha256": sha256})
    return sha256


def _unchanged(path: Path) -> list[str | int]:
    found = os.stat(path)
    return [str(path.absolute()), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


# -- tuning ------------------------------------------------------------------------------------------------------------

CHOSEN = ("threads", "flash_attention", "weights")


def tuning_of(settings: LlamaSettings, sha256: str, machine: str, versions: Sequence[str]) -> dict[str, Any]:
    """The key of a tuning's result: the model, the machine, the programs, and what the settings leave open."""
    asked = {name: getattr(settings, name) for name in (*CHOSEN, "kv_type", "gpu_layers")}
    return {"what": "tuning", "model": sha256, "machine": machine, "versions": list(versions), "asked": asked}


def chosen_before(kept: Kept, about: Mapping[str, Any], among: Sequence[LlamaSettings]) -> LlamaSettings | None:
    """The one of these candidates that an earlier start chose; None when none of them was."""
    values = kept.get(about)
    return next((one for one in among if values and all(values.get(n) == getattr(one, n) for n in CHOSEN)), None)


def keep_choice(kept: Kept, about: Mapping[str, Any], chosen: LlamaSettings) -> None:
    """Keeps what was chosen."""
    kept.put(about, {name: getattr(chosen, name) for name in CHOSEN})
