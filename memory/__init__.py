"""The three stores. This version has the hot one, in process."""
