"""The time of steps on a machine, as stated in costs.toml. Measured machines have it there; a card's is derived from
public figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from core.errors import ConfigError
from core.files import read_toml
from engines.sim import SimCost
from scheduler.planner import PlannerSettings

STATED = Path(__file__).resolve().parent / "costs.toml"
KIB, GB = 1024, 1e9
MEMORY_SHARE = 0.92  # share of a card's memory for weights and KV; activations and the driver have the rest
CARD_CONTEXT_LEN = 1024  # tokens of a sequence on a card; a conversation of eight turns has some 800
CARD_RAM_GB = 32.0  # host memory for KV beside a card
LONG_STEP_MS = 14.0
SEQUENCES_MIN = 48  # shared prefixes, lanes, and a few NPCs


@dataclass(frozen=True, slots=True)
class Host:
    """Python's time in a step: a fixed part, and one for each sequence."""

    step_us: float
    slice_us: float


@dataclass(frozen=True, slots=True)
class Daemon:
    """The event loop's time for an observation, and for a question with its answer."""

    observation_us: float
    question_us: float


@dataclass(frozen=True, slots=True)
class Card:
    """A class of GPU: bandwidth, TFLOPS (dense, f16 or bf16), memory, PCIe, and the time to launch a pass."""

    name: str
    gb_per_s: float
    tflops: float
    memory_gb: float
    pcie_gb_per_s: float
    launch_us: float


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """Parameters in billions, and KV per token at f16."""

    name: str
    billions: float
    kv_kib: float


@dataclass(frozen=True, slots=True)
class Weights:
    """Bits of a weight, and the shares of a card's bandwidth and TFLOPS that kernels reach with them."""

    bits: float
    bandwidth_share: float
    compute_share: float


@dataclass(frozen=True, slots=True)
class Layout:
    """How an engine puts sequences into a step, how many it may have, and how much memory each takes, in tokens."""

    name: str
    one_pass: bool
    sequences_max: int
    reserved_len: int


@dataclass(frozen=True, slots=True)
class Column:
    """One machine with one model: `cost` of its steps, sequences and their length, and the tokens of KV that host RAM
    holds.

    `gold_step_ms` is the step's budget while Gold runs. `why_not` says why the model does not fit.
    """

    key: str
    machine: str
    model: str
    weights: str
    engine: str
    cost: SimCost
    sequences: int
    context_len: int
    ram_tokens: int
    gold_step_ms: float
    measured: bool = False
    why_not: str = ""

    @property
    def name(self) -> str:
        """Machine, model, weights and engine in one line."""
        return ", ".join(part for part in (self.machine, self.model, self.weights, self.engine) if part)


@dataclass(frozen=True, slots=True)
class Stated:
    """The contents of a file of cost models."""

    host: Host
    daemon: Daemon
    cards: Mapping[str, Card]
    models: Mapping[str, LanguageModel]
    weights: Mapping[str, Weights]
    layouts: Mapping[str, Layout]
    columns: tuple[Column, ...]
    path: Path = STATED


def read(path: Path = STATED) -> Stated:
    """The cost models of a file. Raises ConfigError that names the faulty entry."""
    table = read_toml(path, str(path))
    try:
        host, daemon = _made(Host, table["host"]), _made(Daemon, table["daemon"])
        cards = {key: _made(Card, one) for key, one in table.get("cards", {}).items()}
        models = {key: _made(LanguageModel, one) for key, one in table.get("models", {}).items()}
        weights = {key: _made(Weights, one) for key, one in table.get("weights", {}).items()}
        layouts = {key: _made(Layout, one) for key, one in table.get("layouts", {}).items()}
        wanted = table["columns"]
        columns = [_measured(key, table["measured"][key]) for key in wanted.get("measured", ())]
        for names in wanted.get("cards", ()):
            card, model, format_, layout = names
            column = on_card(host, cards[card], models[model], weights[format_], layouts[layout])
            columns.append(replace(column, key="-".join(names), weights=format_))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; loadtests/capacity/costs.toml shows the form") from error
    return Stated(host, daemon, cards, models, weights, layouts, tuple(columns), path)


def step_cost(host: Host, card: Card, model: LanguageModel, weights: Weights, layout: Layout) -> SimCost:
    """The cost of steps on a card. The formulas stand at the top of costs.toml."""
    reached = card.gb_per_s * weights.bandwidth_share
    kv_bytes = model.kv_kib * KIB
    return SimCost(
        step_us=host.step_us,
        slice_us=host.slice_us,
        micro_us=card.launch_us,
        pass_us=weights_gb(model, weights) / reached * 1e6,
        token_us=2 * model.billions / (card.tflops * weights.compute_share) * 1e3,
        kilo_context_us=0.0,
        kilo_read_us=1000 * kv_bytes / (reached * GB) * 1e6,
        one_pass=layout.one_pass,
        # Pages are shared, not copied.
        copy_us=0.0 if layout.one_pass else 20.0,
        copy_token_us=0.0 if layout.one_pass else 2 * kv_bytes / (reached * GB) * 1e6,
        move_us=100.0,
        move_token_us=kv_bytes / (card.pcie_gb_per_s * GB) * 1e6,
    )


def weights_gb(model: LanguageModel, weights: Weights) -> float:
    """Gigabytes of the card's memory for the weights, which each pass reads."""
    return model.billions * weights.bits / 8


def on_card(host: Host, card: Card, model: LanguageModel, weights: Weights, layout: Layout) -> Column:
    """The column of a card: as many sequences as its memory holds beside the weights."""
    kv_bytes = model.kv_kib * KIB
    room = (card.memory_gb * MEMORY_SHARE - weights_gb(model, weights)) * GB
    sequences = min(layout.sequences_max, max(0, int(room / (kv_bytes * layout.reserved_len))))
    why_not = "" if sequences >= SEQUENCES_MIN else f"{max(0.0, room / GB):.1f} GB are left beside the weights"
    ram_tokens = int(CARD_RAM_GB * GB / kv_bytes)
    cost = step_cost(host, card, model, weights, layout)
    return Column(
        "", card.name, model.name, "", layout.name, cost, sequences, CARD_CONTEXT_LEN, ram_tokens, gold_step_ms(cost),
        why_not=why_not,
    )  # fmt: skip


def gold_step_ms(cost: SimCost) -> float:
    """The budget of steps with Gold: npcd's own if two passes fit into it, else nearly the promised time of a Gold
    token."""
    usual = PlannerSettings().gold_step_ms
    return usual if 2 * (cost.pass_us + cost.micro_us) <= 1000 * usual else LONG_STEP_MS


def _measured(key: str, table: Mapping[str, Any]) -> Column:
    terms = {field.name for field in fields(SimCost)}
    rest = {name: value for name, value in table.items() if name not in terms}
    cost = SimCost(**{"kilo_context_us": 0.0, **{name: value for name, value in table.items() if name in terms}})
    ram_tokens = int(rest["ram_gb"] * GB / (rest["kv_kib"] * KIB))
    return Column(
        key, rest["what"], "", "", "", cost, rest["sequences"], rest["context_len"], ram_tokens, gold_step_ms(cost),
        measured=True,
    )  # fmt: skip


Made = TypeVar("Made")


def _made(kind: type[Made], table: Mapping[str, Any]) -> Made:
    return kind(**table)
