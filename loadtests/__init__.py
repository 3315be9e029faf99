"""Worlds that play against a daemon: the demo, and the loads that promises are measured with."""
