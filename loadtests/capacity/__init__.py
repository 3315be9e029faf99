"""How many NPCs a machine carries at the promises, by simulation: `make capacity` writes docs/CAPACITY.md."""
