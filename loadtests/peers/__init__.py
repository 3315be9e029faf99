"""The same work on other servers, for comparison. What each side does is said in the peer's own module."""
