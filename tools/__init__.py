"""What is needed to build npcd, and never to run it."""
