"""Placeholders in a world's texts, such as {{char}}: filled in where their value is known, and refused elsewhere.

Characters and worlds that were written for other programs have them: {{user}} and {{char}}, or {player_name} and
{npc_name}. A model would read them, and say them, as they stand.
"""

from __future__ import annotations

import re

from core.errors import CallerError

NPC_NAMES = frozenset({"char", "bot", "character", "npc", "npc_name", "char_name", "character_name", "name"})
PLAYER_NAMES = frozenset({"user", "player", "player_name", "user_name", "username", "playername"})
SHOWN_LEN_MAX = 40

_PLACEHOLDER = re.compile(r"\{\{([^{}\n]{0,200})\}\}|\{([A-Za-z_]{1,40})\}")


def filled(field: str, text: str, npc: str = "") -> str:
    """The text with the NPC's name in the place of {{char}} and its like; `npc` is empty where no NPC is meant.

    In double braces everything is a placeholder, in single braces the names above are. Raises CallerError naming the
    field and the placeholder if its value is not known in this text.
    """

    def value(found: re.Match[str]) -> str:
        double = found.group(1) is not None
        name = (found.group(1) if double else found.group(2)).strip().lower()
        if name in NPC_NAMES:
            if npc:
                return npc
            why = "this text is read by many NPCs; write the name, or move the sentence into a persona"
        elif name in PLAYER_NAMES:
            why = "an NPC talks with many players; write 'the player'"
        elif double:
            why = "npcd fills in {{char}} in personas and nothing else; write out the text"
        else:
            return found.group()
        raise CallerError(field, f"has the placeholder {found.group()[:SHOWN_LEN_MAX]}: {why}")

    return _PLACEHOLDER.sub(value, text) if "{" in text else text


def opened(text: str, npc: str = "") -> str:
    """The text of a world that an earlier version took: filled in as far as possible, and the rest in plain words."""

    def value(found: re.Match[str]) -> str:
        double = found.group(1) is not None
        name = (found.group(1) if double else found.group(2)).strip().lower()
        if name in NPC_NAMES:
            return npc or "this person"
        if name in PLAYER_NAMES:
            return "the player"
        return "" if double else found.group()

    return _PLACEHOLDER.sub(value, text)
