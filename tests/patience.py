"""How long tests wait for what comes in a moment."""

# Nothing takes that long unless it hangs. A virtual machine may stand still for a minute, when its memory is saved for
# example, and then all timers are due at once: a bound that is there to end a hang is minutes.
PATIENCE_S = 240.0
