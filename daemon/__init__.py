"""The daemon: everything between the wire and the scheduler."""
