"""The rpcs, and the faces that carry them."""
