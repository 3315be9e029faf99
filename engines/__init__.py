"""Engines: what runs a model. base.py is the contract; llama.py and sim.py keep it."""
