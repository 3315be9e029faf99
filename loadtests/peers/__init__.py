"""The same work on other servers, for comparison. Each peer's own module says how the two sides work."""
