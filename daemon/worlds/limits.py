"""The bounds of worlds, of their definitions and of their NPCs: settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorldLimits:
    """How much one world may define, and how many worlds and NPCs this daemon takes in."""

    archetypes_max: int = 64
    """Archetypes of one world."""
    actions_max: int = 64
    """Action words of one world."""
    emotions_max: int = 32
    """Emotion words of one world."""
    personas_max: int = 4096
    """Personas of one world."""
    policy_rows_max: int = 512
    """Rule policy rows of one world."""
    worlds_max: int = 64
    """Worlds in this daemon, of all tenants together."""
    npcs_max: int = 20_000
    """NPCs in this daemon, of all tenants together."""
    npcs_per_call_max: int = 10_000
    """NPCs in one Register call."""
    policy_file: str = ""
    """TOML file with a rule policy for all worlds; its sections take the place of those that come with npcd."""
