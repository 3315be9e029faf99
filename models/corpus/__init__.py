"""The generated corpus: worlds, the acts of their NPCs, and their talk. Everything follows from a seed."""
