"""The daemon's version, state and load as one message. Reads counters of every part; changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from core.clock import MS, Clock, S
from core.spread import Cumulative, Spread, added
from core.words import Activation, Finish, Source, Tier
from daemon.minds.attention import Attention
from daemon.minds.intents import Intents
from daemon.minds.look_ahead import LookAhead
from daemon.minds.pacing import Kept, Pacing
from daemon.minds.pressure import Pressure
from daemon.minds.table import Table
from daemon.starting import Progress
from daemon.talk.dialogue import Dialogue
from daemon.talk.once import GUARD, REBUILD, RECOMPUTED
from daemon.words import whole
from daemon.worlds.worlds import Worlds
from engines.backend import Snapshot
from memory.memory import Memory
from npcd.v1 import admin_pb2
from scheduler.ticket import Door

CONTRACT = (1, 4)
FEATURES = (
    "intents",
    "barks",
    "dialogue",
    "barge_in",
    "policy",
    "watch",
    "drain",
    "memory",
    "saves",
    "activation",
    "prediction",
    "deletion",
)


@dataclass(frozen=True, slots=True)
class AboutEngine:
    """Values of one engine that stay. `layout`: the prompts' layout for its model, and the reason."""

    engine: str
    model_name: str
    model_sha256: str
    layout: str


@dataclass(frozen=True, slots=True)
class About:
    """Values that stay while the daemon lives. `engines` are by name, that of intents first."""

    version: str
    engines: Mapping[str, AboutEngine]
    epoch: int
    started_ns: int

    @property
    def first(self) -> AboutEngine:
        """The engine of intents."""
        return next(iter(self.engines.values()))


@dataclass(slots=True)
class Lifecycle:
    """The daemon's `phase`: "starting", "serving", "draining"; and its open Live streams by tenant."""

    phase: str = "starting"
    streams_of: Counter[str] = field(default_factory=Counter)

    @property
    def streams(self) -> int:
        """Everybody's open Live streams."""
        return self.streams_of.total()

    def begin(self, tenant: str) -> None:
        """A Live stream of a tenant begins."""
        self.streams_of[tenant] += 1

    def end(self, tenant: str) -> None:
        """One of them ends."""
        self.streams_of[tenant] -= 1
        if not self.streams_of[tenant]:
            del self.streams_of[tenant]


def starting(version: str, progress: Progress, uptime_ns: int) -> admin_pb2.StatusResponse:
    """The status of a daemon that does not serve yet."""
    return admin_pb2.StatusResponse(
        version=version,
        contract_major=CONTRACT[0],
        contract_minor=CONTRACT[1],
        phase="starting",
        uptime_ms=whole(uptime_ns // MS, 64),
        starting=admin_pb2.Starting(
            stage=progress.stage,
            engine=progress.engine,
            share=progress.share,
            left_ms=whole(round(progress.left_s * 1000), 64),
            still_ms=whole(round(progress.still_s * 1000), 64),
        ),
    )


class StatusBoard:
    """Builds StatusResponse."""

    def __init__(
        self,
        about: About,
        lifecycle: Lifecycle,
        door: Door,
        worlds: Worlds,
        table: Table,
        intents: Intents,
        attention: Attention,
        look_ahead: LookAhead,
        dialogue: Dialogue,
        memory: Memory,
        pacing: Pacing,
        pressure: Pressure,
        lag: Spread,
        degraded: Callable[[], list[str]],
        clock: Clock,
    ) -> None:
        self.about = about
        self.lifecycle = lifecycle
        self._door = door
        self._worlds = worlds
        self._table = table
        self._intents = intents
        self._attention = attention
        self._look_ahead = look_ahead
        self._dialogue = dialogue
        self._memory = memory
        self._pacing = pacing
        self.pressure = pressure
        self._lag = lag
        self._degraded = degraded
        self._clock = clock

    def degraded(self) -> list[str]:
        """The problems, a line each."""
        return self._degraded()

    def counters(self) -> dict[str, Mapping[str, Mapping[str, float]]]:
        """Snapshot.counters of each engine, by its name."""
        return {name: backend.snapshot.counters for name, backend in self._door.backends.items()}

    def message(self, tenant: str | None = None) -> admin_pb2.StatusResponse:
        """The status right now. With a tenant, what games own is counted as far as it is that tenant's: worlds, NPCs,
        streams, turns, intents, bonds. Engine, queues and stores are one for all.
        """
        status = self._everybody()
        for name, count in self._own(tenant).items() if tenant is not None else ():
            setattr(status, name, count)
        return status

    def histograms(self) -> dict[str, dict[str, Cumulative]]:
        """How long things took since start, by name and tier ("" where there is none), for all backends together."""
        snapshots = [backend.snapshot for backend in self._door.backends.values()]

        def total(times: Sequence[Spread]) -> Cumulative:
            return added((t.ever for t in times), self._lag.ever.bounds_ns)

        return {
            "first_token": {tier.name.lower(): total(self._first(tier, snapshots)) for tier in Tier},
            "token": {tier.name.lower(): total([s.tiers[tier].gap for s in snapshots]) for tier in Tier},
            "step": {"": total([s.step for s in snapshots])},
            "loop_lag": {"": self._lag.ever.cumulative()},
        }

    def _first(self, tier: Tier, snapshots: Sequence[Snapshot]) -> list[Spread]:
        # A player waits for text and not for a token: Silver's first is measured where the text goes out.
        return [self._dialogue.counts.ttft] if tier is Tier.SILVER else [s.tiers[tier].first for s in snapshots]

    def _own(self, tenant: str) -> dict[str, int]:
        """A tenant's own counts, by the field of StatusResponse."""
        worlds = self._worlds.of(tenant)
        intents, attention = self._table.counts.by_tenant, self._attention.counts
        return {
            "worlds": len(worlds),
            "npcs": sum(len(world.npcs) for world in worlds),
            "live_streams": self.lifecycle.streams_of[tenant],
            "turns_open": self._dialogue.open_turns_of(tenant),
            "turns_finished": self._dialogue.counts.finished_of[tenant],
            "intents_model": intents[tenant, Source.MODEL],
            "intents_policy": intents[tenant, Source.POLICY],
            "intents_predicted": intents[tenant, Source.PREDICTED],
            "intents_put_off": sum(1 for mind in self._intents.asking.line if mind.npc.key.tenant == tenant),
            "npcs_active": attention[tenant].levels[Activation.ACTIVE],
            "npcs_warm": attention[tenant].levels[Activation.WARM],
            "promotions": attention[tenant].promotions,
            "demotions": attention[tenant].demotions,
            "bonds": self._memory.bonds.count(tenant),
        }

    def _everybody(self) -> admin_pb2.StatusResponse:
        now_ns = self._clock()
        snapshots = [backend.snapshot for backend in self._door.backends.values()]
        step_p50_ns, step_p95_ns = _slowest([s.step for s in snapshots], now_ns, 0.5, 0.95)
        (lag_ns,) = self._lag.percentiles(now_ns, 0.99)
        counts, recalls, sessions = self._table.counts, self._memory.recaller.counts, self._dialogue.sessions.counts
        levels, guesses = self._attention.activations, self._look_ahead.foresight.counts
        return admin_pb2.StatusResponse(
            version=self.about.version,
            contract_major=CONTRACT[0],
            contract_minor=CONTRACT[1],
            features=FEATURES,
            daemon_epoch=self.about.epoch,
            uptime_ms=whole((now_ns - self.about.started_ns) // MS, 64),
            phase=self.lifecycle.phase,
            degraded=self._degraded(),
            model_name=self.about.first.model_name,
            model_hash=self.about.first.model_sha256,
            engine=self.about.first.engine,
            worlds=len(self._worlds),
            npcs=self._worlds.npcs,
            live_streams=self.lifecycle.streams,
            turns_open=self._dialogue.open_turns,
            tiers=[self._tier(tier, snapshots, now_ns) for tier in Tier],
            steps=sum(s.steps for s in snapshots),
            step_p50_ms=step_p50_ns / MS,
            step_p95_ms=step_p95_ns / MS,
            tokens_per_s=sum(s.step.amount(now_ns) / (s.step.within_ns / S) for s in snapshots),
            lanes=sum(s.kv.lanes for s in snapshots),
            lanes_leased=sum(s.kv.lanes_leased for s in snapshots),
            residents=sum(s.kv.residents for s in snapshots),
            residents_used=sum(s.kv.residents_used for s in snapshots),
            ram_bytes=sum(s.kv.ram_bytes for s in snapshots),
            cached_tokens=sum(s.cached_tokens for s in snapshots),
            prefilled_tokens=sum(s.prefilled_tokens for s in snapshots),
            intents_model=counts.model,
            intents_policy=counts.policy,
            intents_predicted=counts.predicted,
            turns_finished=self._dialogue.counts.finished,
            recomputed_tokens=self._dialogue.counts.again[RECOMPUTED],
            rebuild_tokens=self._dialogue.counts.again[REBUILD],
            guard_tokens=self._dialogue.counts.again[GUARD],
            loop_lag_p99_ms=lag_ns / MS,
            window_closed_complete=sum(s.windows.complete for s in snapshots),
            window_closed_full=sum(s.windows.full for s in snapshots),
            window_closed_time=sum(s.windows.time for s in snapshots),
            stores=[
                admin_pb2.StoreState(
                    store=s.name, away=s.away, written=s.written, behind_bytes=whole(s.behind_bytes, 64)
                )
                for s in self._memory.states()
            ],
            recalls_hot=recalls.hot,
            recalls_recent=recalls.recent,
            recalls_late=recalls.late + recalls.away,
            bonds=len(self._memory.bonds),
            summaries_model=sessions.summaries_model,
            summaries_rule=sessions.summaries_rule,
            shedding=[
                admin_pb2.Shed(work=s.work.value, reason=s.reason, retry_ms=whole(s.retry_ms))
                for s in self.pressure.shed()
            ],
            npcs_active=levels.active,
            npcs_warm=levels.warm,
            promotions=levels.promotions,
            demotions=levels.demotions,
            intents_put_off=len(self._intents.asking.line),
            predictions=guesses.predictions,
            predictions_hit=guesses.hits,
            predicted_tokens=guesses.tokens,
            predicted_wasted_tokens=guesses.wasted_tokens,
            predicted_saved_ms=whole(guesses.saved_ns // MS, 64),
            paces=[_pace(name, kept, self._pacing.shortfalls(name)) for name, kept in self._pacing.all],
            engines=[self._engine(name, about, now_ns) for name, about in self.about.engines.items()],
        )

    def _engine(self, name: str, about: AboutEngine, now_ns: int) -> admin_pb2.EngineStatus:
        snapshot, permits = self._door.backends[name].snapshot, self._door.permits[name]
        p50_ns, p95_ns = snapshot.step.percentiles(now_ns, 0.5, 0.95)
        return admin_pb2.EngineStatus(
            name=name,
            engine=about.engine,
            model_name=about.model_name,
            model_hash=about.model_sha256,
            layout=about.layout,
            steps=snapshot.steps,
            step_p50_ms=p50_ns / MS,
            step_p95_ms=p95_ns / MS,
            tokens_per_s=snapshot.step.amount(now_ns) / (snapshot.step.within_ns / S),
            residents=snapshot.kv.residents,
            residents_used=snapshot.kv.residents_used,
            ram_bytes=snapshot.kv.ram_bytes,
            waiting=whole(sum(permits.waiting(tier) for tier in Tier)),
            running=sum(snapshot.running(tier) for tier in Tier),
        )

    def _tier(self, tier: Tier, snapshots: Sequence[Snapshot], now_ns: int) -> admin_pb2.TierLoad:
        counts = [snapshot.tiers[tier] for snapshot in snapshots]
        first_ns = _slowest(self._first(tier, snapshots), now_ns, 0.5, 0.95, 0.99)
        gap_ns = _slowest([c.gap for c in counts], now_ns, 0.5, 0.95, 0.99)
        ended = {finish: sum(c.ended[finish] for c in counts) for finish in Finish}
        return admin_pb2.TierLoad(
            tier=tier.name.lower(),
            waiting=whole(self._door.waiting(tier)),
            waiting_max=whole(self._door.waiting_max(tier)),
            running=sum(c.running for c in counts),
            finished=ended[Finish.STOP] + ended[Finish.LENGTH],
            superseded=ended[Finish.SUPERSEDED],
            refused=ended[Finish.REFUSED] + self._door.refused(tier),
            cancelled=ended[Finish.CANCELLED],
            failed=ended[Finish.FAILED],
            output_tokens=sum(c.output_tokens for c in counts),
            first_p50_ms=first_ns[0] / MS,
            first_p95_ms=first_ns[1] / MS,
            first_p99_ms=first_ns[2] / MS,
            token_p50_ms=gap_ns[0] / MS,
            token_p95_ms=gap_ns[1] / MS,
            token_p99_ms=gap_ns[2] / MS,
            drafts_on=any(c.drafts.on for c in counts),
            drafts_offered=sum(c.drafts.offered for c in counts),
            drafts_accepted=sum(c.drafts.accepted for c in counts),
            drafts_gain_x=max(c.drafts.gain for c in counts),
        )


def _pace(name: str, kept: Kept, shortfalls: list[str]) -> admin_pb2.Pace:
    c, m = kept.carried, kept.measured
    return admin_pb2.Pace(
        engine=name,
        intents_per_s=c.intents_per_s,
        npcs_active_max=c.active_max,
        active_hz=c.active_hz,
        npcs_warm_max=c.warm_max,
        warm_hz=c.warm_hz,
        conversations=len(kept.talks),
        conversations_max=c.conversations_max,
        conversations_refused=kept.refused,
        intent_ms=m.intent_ns / MS,
        prefill_token_ms=m.prefill_ns / MS,
        token_ms=m.token_ns / MS,
        busy_share=kept.pace.busy_share,
        gives_way=c.gives_way,
        shortfalls=shortfalls,
    )


def _slowest(times: Sequence[Spread], now_ns: int, *shares: float) -> list[float]:
    """Percentiles, each of the backend where it is largest."""
    return [max(values) for values in zip(*(t.percentiles(now_ns, *shares) for t in times), strict=True)]
