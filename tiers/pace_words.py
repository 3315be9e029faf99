"""The pace in words, for people: where a model cannot keep a promise here at all, with numbers and what helps."""

from __future__ import annotations

from core.clock import MS, S
from tiers.pace import READ_TOKENS_PER_S, TURN_PREFILL, Measured
from tiers.promises import Promises

EVERY_S = 2.0  # "about 12 NPCs every 2 s"


def shortfalls(
    measured: Measured, promises: Promises, intents_per_s: float, does: frozenset[str] = frozenset({"intent", "reply"})
) -> list[str]:
    """A line for each promise that this backend cannot keep, whatever is put off. `does` names the routes that it
    serves; empty when costs are unknown.
    """
    m, said = measured, []
    token_ms, gold_ms = m.token_ns / MS, promises.gold.first_ms
    if "intent" in does and token_ms > gold_ms:
        npcs = max(1, round(intents_per_s * EVERY_S))
        said.append(
            f"{token_ms:.0f} ms a token here, Gold is promised {gold_ms}: about {npcs} NPCs every {EVERY_S:g} s; set "
            "routes.intent.engine to a smaller model"
        )
    first_ms, promised_ms = (TURN_PREFILL * m.prefill_ns + m.token_ns) / MS, promises.silver.first_ms
    if "reply" in does and first_ms > promised_ms:
        said.append(
            f"the first text of a reply takes {first_ms:.0f} ms here, Silver is promised {promised_ms}; set "
            "routes.reply.engine to a smaller model, or compute on a GPU (engine.gpu_layers)"
        )
    if "reply" in does and m.token_ns * READ_TOKENS_PER_S > S:
        said.append(
            f"a reply has {S / m.token_ns:.1f} tokens/s here, reading takes {READ_TOKENS_PER_S:g}; set "
            "routes.reply.engine to a smaller model"
        )
    return said
