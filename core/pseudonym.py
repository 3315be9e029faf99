"""The name of a player in logs, `npcd kv` and the archive: one key makes all of them, so that they match."""

from __future__ import annotations

import hmac
import json


def pseudonym(key: bytes, tenant: str, player: str) -> str:
    """A player's pseudonym: 16 hex digits, different in every tenant. Empty for nobody. It cannot be turned back."""
    if not player:
        return ""
    said = json.dumps([tenant, player]).encode()  # no two pairs give the same bytes
    return hmac.digest(key, said, "sha256").hex()[:16]
