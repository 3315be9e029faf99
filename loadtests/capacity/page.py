"""docs/CAPACITY.md: page.md with the tables of an outcome. The same outcome gives the same page, byte for byte."""

from __future__ import annotations

from pathlib import Path

from loadtests.capacity.costs import Stated
from loadtests.capacity.outcome import Outcome, Row
from loadtests.capacity.simulate import Promised

FRAME = Path(__file__).resolve().parent / "page.md"
FAR_OFF = 0.3  # a simulated figure that differs more from the measured one is in bold, and explained


def markdown(outcome: Outcome, stated: Stated) -> str:
    """The whole page as Markdown."""
    used = [m for m in stated.models.values() if any(c.model == m.name for c in stated.columns)]
    parts = {
        "table": _table(outcome),
        "held": _held(outcome),
        "cards": _cards(stated),
        "weights": _weights(stated),
        "models": ", ".join(
            f"{m.name}: {m.billions:g} billion parameters, {m.kv_kib:g} KiB of KV a token" for m in used
        ),
        "comparison": _comparison(outcome),
        "inputs": outcome.inputs,
    }
    text = FRAME.read_text("utf-8")
    for name, part in parts.items():
        text = text.replace(f"{{{{{name}}}}}", part)
    return text


def _table(outcome: Outcome) -> str:
    names = ("machine, model", "how it was got", "a pass", "NPCs in view", "active, warm", "intents/s", "turns/s")
    lines = [f"| {' | '.join(names)} | breaks first |", "|---|---|---:|---:|---:|---:|---:|---|"]
    for row in outcome.rows:
        how = "cost model measured" if row.measured else f"simulated; {row.engine}"
        first = f"| {row.name} | {how} | {row.pass_ms:g} ms "
        if row.why_not:
            lines.append(f"{first}| **does not fit** | | | | {row.why_not} |")
            continue
        held = row.held
        npcs = f"**{row.npcs:,}**" if row.npcs else "**0**" + (f" ({row.patient:,})" if row.patient > 0 else "")
        levels = f"{held['active']:.0f}, {held['warm']:.0f}" if held else ""
        rates = f"{held['intents_per_s']:.0f} | {held['turns_per_s']:.1f}" if held else " | "
        lines.append(f"{first}| {npcs} | {levels} | {rates} | {_broken(row)} |")
    return "\n".join(lines)


def _broken(row: Row) -> str:
    if not row.breaks:
        return "nothing, up to here"
    beyond = row.beyond
    values = {
        "Gold per token": f"{beyond['gold_token_ms']:,.0f} ms",
        "intent latency": f"{beyond['intent_latency_ms']:,.0f} ms",
        "intent age": f"{beyond['intent_age_ms']:,.0f} ms",
        "Silver's first text": f"{beyond['silver_first_ms']:,.0f} ms",
        "the model's share": f"{beyond['model_share']:.2f}",
        "the event loop": f"{beyond['loop_share']:.0%} busy",
    }
    return f"{row.breaks}, {values[row.breaks]} at {beyond['npcs']:,.0f}"


def _held(outcome: Outcome) -> str:
    p = Promised()
    promised = (
        f"Gold per token (< {p.gold_token_ms:g} ms)",
        f"intent latency (< {p.intent_latency_ms:g} ms)",
        f"intent age, active (< {p.intent_age_ms:,.0f} ms)",
        f"Silver's first text (< {p.silver_first_ms:g} ms)",
        f"model's share (>= {p.model_share:g})",
    )
    lines = [
        f"| | {' | '.join(promised)} | engine busy | event loop | Bronze tokens/s | loads from RAM/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in outcome.rows:
        if row.held:
            h = row.held
            name = f"{row.name}, {row.engine}" if row.engine else "this CPU"
            shares = f"{h['model_share']:.3f} | {h['engine_share']:.0%} | {h['loop_share']:.0%}"
            lines.append(
                f"| {name} | {h['gold_token_ms']:.1f} | {h['intent_latency_ms']:.0f} | {h['intent_age_ms']:.0f} | "
                f"{h['silver_first_ms']:.0f} | {shares} | {h['bronze_per_s']:,.0f} | {h['loads_per_s']:.0f} |"
            )
    return "\n".join(lines)


def _cards(stated: Stated) -> str:
    lines = [
        "| card | bandwidth | dense f16 or bf16 | memory | PCIe | launching a pass |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for c in stated.cards.values():
        memory = f"{c.memory_gb:g} GB | {c.pcie_gb_per_s:g} GB/s"
        lines.append(
            f"| {c.name} | {c.gb_per_s:,.0f} GB/s | {c.tflops:g} TFLOPS | {memory} | {c.launch_us / 1000:g} ms |"
        )
    return "\n".join(lines)


def _weights(stated: Stated) -> str:
    lines = ["| weights | bits | of the bandwidth | of the FLOPS |", "|---|---:|---:|---:|"]
    for name, w in stated.weights.items():
        lines.append(f"| {name} | {w.bits:g} | {w.bandwidth_share:.0%} | {w.compute_share:.0%} |")
    return "\n".join(lines)


def _comparison(outcome: Outcome) -> str:
    lines = ["| what | simulated | measured | off | where it was measured |", "|---|---:|---:|---:|---|"]
    for c in outcome.compared:
        unit = f" {c.unit}" if c.unit else ""
        off = f"**{c.off:+.0%}**" if abs(c.off) > FAR_OFF else f"{c.off:+.0%}"
        lines.append(f"| {c.what} | {c.simulated:,g}{unit} | {c.measured:,g}{unit} | {off} | {c.source} |")
    return "\n".join(lines)
