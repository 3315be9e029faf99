"""The minds of NPCs: attention, questions, the table of intents."""
