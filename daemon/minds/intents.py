"""Intents: takes observations in, and does what tiers/asking.py decides about them.

Owns the questions under way; all on the event loop. An observation never waits: it lands in its mind,
looked at or as a glimpse. The table (daemon/minds/table.py) always has an answer: the model's, or the rule policy's if
the model's is late or the NPC is ambient. When an NPC is removed its work is cancelled and its trunk forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from core.clock import Clock
from core.errors import CallerError, Draining, Overloaded
from core.slices import collect_young
from core.steps import Steps
from core.words import Activation, Finish, TrunkKey
from core.work import Ended
from daemon.minds.alarm import Alarm
from daemon.minds.answers import Answers
from daemon.minds.attention import Attention
from daemon.minds.games import Games
from daemon.minds.loading import Loading
from daemon.minds.look_ahead import LookAhead
from daemon.minds.mind import Answer, Game, Glimpse, Mind, Question, answer_of, taker
from daemon.minds.questions import Questions
from daemon.minds.table import Subscriber, Table
from daemon.words import ID_BYTES_MAX, OVERRIDES, observation
from daemon.worlds.world import Npc, World
from npcd.v1 import intents_pb2
from prompts.sight import state_of
from scheduler.ticket import Door
from tiers.asking import Asking
from tiers.phase import OUTDATED
from tiers.ready import Ask, Ready

ROOM = 32  # answers by rule and looks in one go: about a millisecond of the event loop


class Intents:
    """The whole of it. Call it on the running loop only."""

    def __init__(
        self,
        asking: Asking[Mind],
        table: Table,
        attention: Attention,
        answers: Answers,
        look_ahead: LookAhead,
        questions: Questions,
        loading: Loading,
        door: Door,
        expect: Callable[[int | None], None],
        stalled: Callable[[int], bool],
        slice_ns: int,
        clock: Clock,
    ) -> None:
        self.asking = asking
        self.games = Games(clock)
        self._table = table
        self._attention = attention
        self._answers = answers
        self._look_ahead = look_ahead
        self._questions = questions
        self._loading = loading
        self._percepts_max = questions.percepts_max
        self._door = door
        self._expect = expect
        self._stalled = stalled
        self._slice_ns = slice_ns
        self._clock = clock
        self._under_way: dict[int, Question] = {}  # by the number that tiers/asking.py gave
        self._deciding: Steps[None] | None = None  # the decision about attention that is under way
        self._alarm = Alarm(self.pump, clock)

    @property
    def under_way(self) -> int:
        """How many questions the model is asked now."""
        return len(self._under_way)

    # -- in ----------------------------------------------------------------------------------------------------

    def observe(
        self,
        world: World,
        said: intents_pb2.Observation,
        game_time_ms: int,
        subscriber: Subscriber | None,
        game: Game | None,
    ) -> intents_pb2.NpcError | None:
        """Takes one observation in; returns what is wrong with it, if something is. Call pump() after a frame's last.

        Of a stream's it may be looked at later, or never when a newer one comes first; then the stream hears what is
        wrong with it. `game` None: it came by a call of its own, and belongs to those under the same lease.
        """
        npc = world.npcs.get(said.npc_id)
        if npc is None:
            return _error(said.npc_id, "UNKNOWN_NPC", "npc_id", f"not registered in world '{world.world_id}'")
        if said.lease_epoch != npc.lease_epoch:
            text = f"lease epoch {said.lease_epoch} is not the present one; register again to observe for this NPC"
            error = _error(said.npc_id, "STALE_LEASE", "lease_epoch", text)
            error.lease_epoch = npc.lease_epoch
            return error
        mind = self._table.mind_of(npc)
        self._table.counts.observations += 1
        mind.observations += 1
        if said.tick <= mind.tick:
            mind.dropped += 1
            self._table.counts.dropped += 1
            if subscriber is not None:
                subscriber.dropped += 1
            return None
        now_ns = self._clock()
        game = game or self.games.caller(world, npc.lease_epoch)
        if mind.game is not game:
            if game.time.at(now_ns) != mind.game.time.at(now_ns):
                self._look_ahead.forget(mind)
            mind.game = game
        may_wait = subscriber is not None and not said.events and not _overrides(mind, said)
        glimpse = Glimpse(said, game_time_ms, now_ns, subscriber.complain if subscriber is not None else None)
        if not self.asking.observed(mind, npc.number, game, may_wait, now_ns):
            mind.tick = said.tick
            mind.glimpse = glimpse
            return None
        wrong = self._look(mind, glimpse, now_ns)
        self._do_at_once(now_ns)
        return wrong

    def _look(self, mind: Mind, glimpse: Glimpse, now_ns: int) -> intents_pb2.NpcError | None:
        """Reads what an observation says; returns what is wrong with it, if something is."""
        said = glimpse.said
        mind.glimpse = None
        try:
            seen = observation(said, glimpse.game_time_ms, glimpse.at_ns)
        except CallerError as error:
            self.asking.spoiled(mind, now_ns)
            return _error(said.npc_id, "INVALID_FIELD", error.field, str(error))
        # An event is urgent when it happens, not for as long as the game goes on mentioning it.
        startled = bool(seen.events) and (mind.seen is None or any(e not in mind.seen.events for e in seen.events))
        mind.seen, mind.tick = seen, said.tick
        before, mind.state = mind.state, state_of(seen, self._percepts_max)
        self._attention.saw(mind, seen)
        self._look_ahead.saw(mind, seen)
        if mind.state != before:
            saved_ns = self.asking.would_wait_ns(mind, startled, seen.at_ns)
            self._look_ahead.came_true(mind, mind.state, saved_ns, seen.at_ns)
        if self.asking.saw(mind, mind.state, startled, mind.state in mind.answers, seen.at_ns, now_ns):
            self._table.confirm(mind, seen)
        return None

    def remove(self, npc: Npc) -> None:
        """Takes an NPC out of the table."""
        mind = self._table.drop(npc)
        if mind is not None:
            if mind.barking is not None:
                mind.barking.cancel()
            now_ns = self._clock()
            self.asking.removed(mind, now_ns)
            self._go_on(now_ns)
            self._attention.remove(mind)
            self._look_ahead.remove(mind)
        self._door.forget(TrunkKey(npc.key, ""))

    def replaced(self, npc: Npc) -> None:
        """An NPC was registered anew (other trunk or lease): its mind goes on with what it saw, a new lease's ticks
        begin. In another world, or as another NPC, it is asked anew.
        """
        mind = self._table.mind(npc.key)
        if mind is None:
            return
        new_lease = mind.npc.lease_epoch != npc.lease_epoch
        other = not new_lease or mind.npc.spec != npc.spec
        if new_lease:
            mind.tick = -1
            mind.glimpse = None
        if mind.intent is not None and other:
            mind.intent.state = OUTDATED
        mind.npc = npc
        mind.answers.clear()
        now_ns = self._clock()
        self.asking.reregistered(mind, npc.number, new_lease, other, now_ns)
        self._go_on(now_ns)

    def loading_ahead(self, npcs: Iterable[Npc]) -> Steps[None]:
        """Brings trunks into place in the background, before anybody is asked."""
        return self._loading.ahead(npcs)

    def tell_time(self, games: Iterable[Game], scale: float, paused: bool) -> None:
        """Says how fast game time runs from now on. While a game is paused its NPCs are not asked; those that become
        due meanwhile are asked when it goes on. Call pump() afterwards.
        """
        now_ns = self._clock()
        for game in games:
            self.asking.tell(game, scale, paused, now_ns)

    def ended(self, game: Game) -> None:
        """A stream is over, and with it what it said of time: nobody waits for a game that is gone."""
        self.tell_time((game,), 1.0, paused=False)
        self.pump()

    # -- doing what is decided ---------------------------------------------------------------------------------

    def pump(self) -> None:
        """Decides about attention, does what is due, and sets the alarm."""
        now_ns = self._clock()
        self._attend(now_ns)
        stalled, room = self._stalled(now_ns), ROOM
        sooner_ns = None
        while True:
            self.asking.tick(now_ns, room, stalled)
            ready = self.asking.ready(now_ns)
            assert ready is not None, "a tick is always answered"
            if ready.nothing:
                break
            self._do(ready, now_ns)
            sooner_ns = self._do_all(now_ns)
            room -= 1 + len(ready.look) + len(ready.rule)
            # The rest stays due: the alarm comes back for it in the loop's next turn, and other tasks get theirs.
            if room <= 0:
                break
        self._expect(ready.expect_ns)
        self._look_ahead.think(now_ns, self._foreseen)
        attend_ns = self._attention.due_ns() if self._deciding is None else None
        wake_ns = min((at for at in (ready.wake_ns, sooner_ns, attend_ns) if at is not None), default=None)
        if wake_ns is not None:
            self._alarm.at(wake_ns)

    def _go_on(self, now_ns: int) -> None:
        """Does what an input outside of pump() has led to. Once for all that the engine makes known in a turn of the
        loop, pump() gives free places to others.
        """
        wake_ns = self._do_all(now_ns)
        if wake_ns is None:
            return
        if wake_ns <= now_ns:
            self._alarm.soon()
        else:
            self._alarm.at(wake_ns)

    def _do_all(self, now_ns: int) -> int | None:
        """Does all that is wanted since the last tick; returns when to tick, if that is earlier than was said."""
        wake_ns = None
        while (ready := self.asking.ready(now_ns)) is not None:
            if ready.wake_ns is not None:
                wake_ns = ready.wake_ns
            self._do(ready, now_ns)
        return wake_ns

    def _do_at_once(self, now_ns: int) -> None:
        """The same before a pump(), which sees when to tick. A look at that for each observation would cost a tenth of
        all that the observation costs.
        """
        while (ready := self.asking.at_once()) is not None:
            self._do(ready, now_ns)

    def _do(self, ready: Ready[Mind], now_ns: int) -> None:
        for mind in ready.confirm:
            assert mind.seen is not None
            self._table.confirm(mind, mind.seen)
        for stand in ready.stand:
            self._answers.by_model(self._under_way.pop(stand.number), stand.agrees)
        for number in ready.keep:
            del self._under_way[number]
        for rule in ready.rule:
            self._answers.by_rule(rule.who, rule.due_ns)
        for recall in ready.recall:
            if self._answers.from_memory(recall.who, recall.due_ns):
                self.asking.recalled(recall.who, now_ns)
            else:
                self.asking.forgot(recall.who, now_ns)
        for mind in ready.load:
            self._load(mind, now_ns)
        for number in ready.cancel:
            ticket = self._under_way[number].ticket
            if ticket is not None:
                ticket.cancel()
        if ready.ask:
            self._ask(ready.ask, now_ns)
        for mind in ready.look:
            self._look_now(mind, now_ns)

    def _look_now(self, mind: Mind, now_ns: int) -> None:
        """Looks at what was not looked at yet."""
        glimpse = mind.glimpse
        if glimpse is not None:
            error = self._look(mind, glimpse, now_ns)
            if error is not None and glimpse.complain is not None:
                glimpse.complain(error)

    def _load(self, mind: Mind, now_ns: int) -> None:
        """Brings the KV of an NPC that got attention into place."""

        def loaded(_: Ended) -> None:
            now_ns = self._clock()
            self.asking.loaded(mind, now_ns)
            self._go_on(now_ns)

        try:
            self._loading.load(mind.npc, loaded)
        except (Overloaded, Draining):
            self.asking.not_loaded(mind, now_ns)  # its first question computes what is missing

    def _ask(self, asks: Sequence[Ask[Mind]], now_ns: int) -> None:
        """Asks the model, as one group."""
        group = []
        for ask in asks:
            mind = ask.who
            assert mind.seen is not None
            q = self._under_way[ask.number] = self._questions.about(mind, mind.seen, mind.state, ask.due_ns)
            q.number = ask.number
            group.append((self._questions.intent(q), partial(self._answered, q), taker(q)))
        try:
            tickets = self._door.submit_group(group)
        except (Overloaded, Draining):
            numbers = [ask.number for ask in asks]
            for number in numbers:
                del self._under_way[number]
            self.asking.refused(numbers, now_ns)
            return
        for ask, ticket in zip(asks, tickets, strict=True):
            # A question that is still on its way is superseded while it waits; while it runs, its answer still counts.
            self._under_way[ask.number].ticket = ticket

    # -- answers -----------------------------------------------------------------------------------------------

    def _answered(self, q: Question, ended: Ended) -> None:
        mind, number, now_ns = q.mind, q.number, self._clock()
        if ended.finish is Finish.STOP:
            if q.npc is mind.npc and not mind.removed:  # or it is an answer about what the NPC was
                self._attention.pacing.answered(ended.timings, len(q.tail.tokens), now_ns)
                q.answer = answer_of(q, ended, now_ns)
                self._answers.remember(mind, q.state, q.answer)
            self.asking.answered(number, now_ns)
        else:
            del self._under_way[number]
            if ended.finish in (Finish.SUPERSEDED, Finish.CANCELLED):
                self.asking.dropped(number, now_ns)
            else:
                self.asking.failed(number, now_ns)
        self._go_on(now_ns)

    def _foreseen(self, mind: Mind, state: str, answer: Answer) -> None:
        """The model answered to a state before it came true, or while it did."""
        self._answers.remember(mind, state, answer)
        self.asking.knows(mind, state)
        self._go_on(self._clock())

    # -- attention ---------------------------------------------------------------------------------------------

    def _attend(self, now_ns: int) -> None:
        """Begins to decide about attention when that is due. With few NPCs it is done at once."""
        due_ns = self._attention.due_ns()
        if self._deciding is None and due_ns is not None and due_ns <= now_ns:
            self._deciding = self._attending(now_ns)
            self._decide_on()

    def _decide_on(self) -> None:
        """Goes on deciding about attention for a slice."""
        assert self._deciding is not None
        began_ns = self._clock()
        try:
            next(self._deciding)
            while self._clock() - began_ns < self._slice_ns:
                next(self._deciding)
        except StopIteration:
            self._deciding = None
            self._alarm.soon()
        else:
            collect_young()
            asyncio.get_running_loop().call_soon(self._decide_on)  # others have their turn first

    def _attending(self, now_ns: int) -> Steps[None]:
        """Has it decided who gets how much attention, and does what follows for those whose attention changed."""
        changes, newcomers = yield from self._attention.deciding(self.asking.overdue(), now_ns)
        carried = self._attention.pacing.intents
        self.asking.keep_pace(carried.intents_per_s, carried.under_way_max, carried.cadence, now_ns)
        for change in changes:
            yield
            mind = change.who
            # Between two steps others may have come to another decision.
            if mind.seen is None or mind.removed or mind.activation is not change.now:
                continue
            if change.now is Activation.AMBIENT:
                self._look_ahead.rest(mind)
            self.asking.attended(mind, change.now, len(changes), now_ns)
            self._do_at_once(now_ns)
        for mind in newcomers:
            yield
            self.asking.decided(mind, now_ns)
            self._do_at_once(now_ns)


def _overrides(mind: Mind, said: intents_pb2.Observation) -> bool:
    """True when the game's override of the activation has changed."""
    before = mind.seen.override if mind.seen is not None else None
    return (OVERRIDES.get(said.activation) if said.has_activation else None) is not before


def _error(npc_id: str, code: str, field_name: str, text: str) -> intents_pb2.NpcError:
    return intents_pb2.NpcError(npc_id=npc_id[:ID_BYTES_MAX], code=code, field=field_name, message=text)
