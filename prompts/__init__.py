"""What a model reads: how worlds, NPCs, turns and perceptions become text and tokens. Everything here decides."""
