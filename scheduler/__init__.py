"""From submitted works to steps of the engine, and back through their tickets."""
