"""Conversations: sessions, turns, the text that players read."""
