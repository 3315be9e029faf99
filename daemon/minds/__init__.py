"""What NPCs see and intend: attention, questions, the table of intents."""
