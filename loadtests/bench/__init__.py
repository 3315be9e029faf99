"""Benchmarks: `python -m loadtests.bench [AREA]`. An area is a module with PARTS and `async run(figures, options)`."""
