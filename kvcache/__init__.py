"""The place of each trunk's KV. Everything here decides; the scheduler moves the bytes."""
