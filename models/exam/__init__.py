"""The examination of the models that ship: intents, facts, talk and the draft, through the daemon's own engine."""
