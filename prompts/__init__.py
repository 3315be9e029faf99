"""Prompts: how worlds, NPCs, turns and perceptions become text and tokens. Everything here decides."""
