"""The process and what it starts: serving, probes, logs, children, the data folder."""
