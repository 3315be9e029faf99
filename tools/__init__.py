"""Programs for building npcd, which it does not need to run."""
