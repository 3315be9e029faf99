"""Words every folder shares. Imports nothing of ours."""
