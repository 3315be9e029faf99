"""Worlds and the NPCs in them, as game servers define them."""
