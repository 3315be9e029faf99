"""Which tokens' KV is where. Everything here decides; the scheduler moves the bytes."""
