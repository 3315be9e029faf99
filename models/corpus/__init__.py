"""The generated corpus: worlds, what their NPCs do, and how they talk. Everything follows from a seed."""
