"""npcd gives game NPCs a mind. This package is the only name that an installation shows."""

__version__ = "0.1.0"
