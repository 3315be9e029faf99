"""Intents: what NPCs see, who is asked when, and what becomes of the answers.

Owns a heap of moments and one timer; all on the event loop. An observation never waits: it lands in its mind. When the
NPC's cadence says so it gets into line (tiers/share.py), and whoever is asked is asked about the newest it saw. The
table (daemon/minds/table.py) always has an answer: the model's, or the rule policy's when the model's is late or the
NPC is ambient. When an NPC is removed its work is cancelled and its trunk forgotten.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable
from weakref import WeakValueDictionary

from core.clock import MS, Clock, S
from core.errors import CallerError, Draining, Overloaded
from core.observation import Observation
from core.slices import collect_young
from core.steps import Steps
from core.words import Activation, Finish, NpcKey, Source, TrunkKey
from core.work import Ended, Work
from daemon.minds.attention import PLAYER_KIND, Attention
from daemon.minds.barks import Barks
from daemon.minds.look_ahead import LookAhead
from daemon.minds.mind import Answer, Game, Glimpse, IntentSettings, Mind, Question, answer_of, taker
from daemon.minds.table import Subscriber, Table
from daemon.words import ID_BYTES_MAX, OVERRIDES, observation
from daemon.worlds.works import Works
from daemon.worlds.worlds import Npc, World, Worlds
from npcd.v1 import intents_pb2
from prompts.sight import state_of
from scheduler.ticket import Door
from tiers.cadence import due_ns
from tiers.game_time import GameTime
from tiers.policy import evaluate
from tiers.routing import Routes, WorkKind
from tiers.share import Share

ACTIVE_LOOK_MAX_NS = 250 * MS  # half a slot
CROWD = 16  # so many NPCs that get attention at the same moment are asked one after the other
LOADED_AT_ONCE = 16
LOADS_MAX = 64  # trunks on their way into place before anybody is asked
STALL_LOOK_NS = 10 * MS  # how often it is looked whether the engine stands still, for those that wait
SWEEP_EVERY_NS = 100 * MS
NEXT_WITHIN_NS = 150 * MS  # an observation that comes until then is looked at in place of a glimpse that waits
OUTDATED = "?"  # the state of an intent from another world than the present one: no state is written so
WAKE_MAX_NS = 3600 * S  # a game that runs slowly has due moments that no timer takes
RULED_MAX = 32  # answers by rule in one go, and glimpses looked at: about a millisecond of the event loop
POPPED_MAX = 256  # moments taken off the heap in one go


class Intents:
    """The whole of it. Call it on the running loop only."""

    def __init__(
        self,
        table: Table,
        attention: Attention,
        barks: Barks,
        look_ahead: LookAhead,
        worlds: Worlds,
        works: Works,
        door: Door,
        routes: Routes,
        settings: IntentSettings,
        digest: Callable[[NpcKey, str], str],
        expect: Callable[[int | None], None],
        stalled: Callable[[int], bool],
        roomy: Callable[[], bool],
        slice_ns: int,
        clock: Clock,
    ) -> None:
        self._slice_ns = slice_ns
        self.share: Share[Mind] = Share(settings.share)
        self._table = table
        self._attention = attention
        self._barks = barks
        self._look_ahead = look_ahead
        look_ahead.question, look_ahead.answered = self._question_about, self._foreseen
        self._worlds = worlds
        self._works = works
        self._door = door
        self._route = routes.of(WorkKind.INTENT)
        self._layout = works.layout(self._route)
        self._trunk_route = routes.of(WorkKind.TRUNK)
        self._settings = settings
        self._digest = digest
        self._expect = expect
        self._stalled = stalled
        self._roomy = roomy
        self._clock = clock
        # An ambient NPC is asked only when something happens to it, and then no more often than a warm one.
        warm_ns = round(S / settings.cadence.warm_hz)
        self._slot_ns = {a: settings.cadence.slot_ns_of(a) or warm_ns for a in Activation}
        self._look_ns = {
            Activation.ACTIVE: 0,
            Activation.WARM: settings.warm_look_ms * MS,
            Activation.AMBIENT: settings.ambient_look_ms * MS,
        }
        # What a question costs, for the share: as much as its tail may hold, and the choice.
        self._tokens_each = self._layout.caps.intent_tail + self._route.output_max
        # Of game servers that call Observe; streams have their own. An entry ends with the last mind that it observes.
        self._callers: WeakValueDictionary[tuple[str, str, int], Game] = WeakValueDictionary()
        self._glimpsed: set[Mind] = set()
        # Who is to be scheduled anew, and who became due during a pause, of games whose time runs otherwise now.
        self._resumed: deque[tuple[set[Mind], set[Mind]]] = deque()
        self._deciding: Steps[None] | None = None  # the decision about attention that is under way
        self._sweep_ns = 0
        self._overdue = 0  # answers by rule for want of the model's, since the last decision about attention
        # (moment, order, mind, late): a mind that is due (late 0), or one whose answer number `late` should be there.
        self._heap: list[tuple[int, int, Mind, int]] = []
        self._order = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._soon = False
        self._to_load: deque[Npc] = deque()
        self._loads = 0
        self._loading = False  # _load_on() will be called

    # -- in ----------------------------------------------------------------------------------------------------

    def observe(
        self,
        world: World,
        said: intents_pb2.Observation,
        game_time_ms: int,
        subscriber: Subscriber | None,
        game: Game | None,
    ) -> intents_pb2.NpcError | None:
        """Takes one observation in; what is wrong with it, if something is. Call pump() after a frame's last one.

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
        self._observed_by(mind, game or self._caller(world, npc.lease_epoch), now_ns)
        glimpse = Glimpse(said, game_time_ms, now_ns, subscriber.complain if subscriber is not None else None)
        if subscriber is not None and now_ns < mind.look_ns and not said.events and not _overrides(mind, said):
            mind.tick = said.tick
            mind.glimpse = glimpse
            self._glimpsed.add(mind)
            if mind.activation is not Activation.AMBIENT and not (mind.due_ns or mind.waiting_ns or mind.loading_ns):
                # When its slot comes it is looked at; whether anything changed is seen then.
                self._due_from(mind, now_ns, urgent=False)
            return None
        wrong = self._look(mind, glimpse)
        if wrong is None:
            self._judge(mind)
        return wrong

    # -- game time ---------------------------------------------------------------------------------------------

    def begin(self) -> Game:
        """A game server opens a stream."""
        return Game(GameTime(self._clock()))

    def callers(self, world: World, said: Iterable[intents_pb2.Observation]) -> list[Game]:
        """Whose time a frame tells that came by a call of its own: of those under the leases that stand in it. A frame
        without observations is about all that were observed by calls. Keep them until the frame is taken in.
        """
        leases = {
            npc.lease_epoch
            for one in said
            if (npc := world.npcs.get(one.npc_id)) is not None and npc.lease_epoch == one.lease_epoch
        }
        if leases:
            return [self._caller(world, lease_epoch) for lease_epoch in leases]
        return [game for key, game in self._callers.items() if key[:2] == (world.tenant, world.world_id)]

    def tell_time(self, games: Iterable[Game], scale: float, paused: bool) -> None:
        """Says how fast game time runs from now on. While a game is paused its NPCs are not asked; who became due
        meanwhile is asked when it goes on. Call pump() afterwards.
        """
        now_ns = self._clock()
        for game in games:
            if not game.time.tell(scale, paused, now_ns) or paused:
                continue
            due, game.due = game.due, set()
            put_off, game.put_off = game.put_off, set()
            self._resumed.append((due, put_off))

    def _resume(self) -> int:
        """Goes on with some of those whose game's time runs otherwise now; how many."""
        count = 0
        while self._resumed and count < RULED_MAX:
            due, put_off = self._resumed[0]
            if due:
                self._on_with(due.pop(), was_due=True)
            elif put_off:
                self._on_with(put_off.pop(), was_due=False)
            else:
                self._resumed.popleft()
                continue
            count += 1
        if self._resumed:
            self._pump_soon()
        return count

    def _on_with(self, mind: Mind, was_due: bool) -> None:
        """Moves the due moment of a mind whose game runs at another pace now, or was paused."""
        if mind.removed:
            return
        if mind.game.time.paused:  # again, before its turn came
            (mind.game.due if was_due else mind.game.put_off).add(mind)
        elif mind.due_ns:
            self._schedule_anew(mind)
        elif not was_due and not self._stands(mind):
            self._set_due(mind)

    def ended(self, game: Game) -> None:
        """A stream is over, and with it what it said of time: nobody waits for a game that is gone."""
        self.tell_time((game,), 1.0, paused=False)
        self.pump()

    def _caller(self, world: World, lease_epoch: int) -> Game:
        key = (world.tenant, world.world_id, lease_epoch)
        game = self._callers.get(key)
        if game is None:
            game = self._callers[key] = self.begin()
        return game

    def _observed_by(self, mind: Mind, game: Game, now_ns: int) -> None:
        """The NPC's moments are of another game server's time from now on."""
        before = mind.game
        if before is game:
            return
        mind.game = game
        before.due.discard(mind)
        before.put_off.discard(mind)
        shift_ns = game.time.at(now_ns) - before.time.at(now_ns)
        if shift_ns:
            mind.stood_ns += shift_ns
            mind.due_game_ns += shift_ns
            if mind.asked_ns is not None:
                mind.asked_ns += shift_ns
            self._look_ahead.forget(mind)
        if mind.due_ns:
            if game.time.paused:
                mind.due_ns = 0
                game.put_off.add(mind)
            else:
                self._schedule_anew(mind)

    # -- the rhythm --------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Decides about attention, lines up who is due, asks whom the engine carries, lets the policy answer for late
        ones, and sets the timer.
        """
        now_ns = self._clock()
        self._soon = False
        self._attend(now_ns)
        ruled = self._resume()
        if self._glimpsed and ruled < RULED_MAX and now_ns >= self._sweep_ns:
            ruled += self._sweep(now_ns)
        # What is left is due still: the timer comes back for it in the loop's next turn, and others get theirs between.
        popped = 0
        while self._heap and self._heap[0][0] <= now_ns and ruled < RULED_MAX and popped < POPPED_MAX:
            mind, late = self._pop()
            popped += 1
            if late:
                ruled += self._rule_if_late(mind, late, now_ns)
            elif mind.due_ns and mind.due_ns <= now_ns and not mind.removed:
                if mind.due_game_ns > mind.game.time.at(now_ns) and not mind.game.time.paused:
                    self._schedule(mind)  # set at another pace
                    if mind.due_ns > now_ns:
                        continue
                self._line_up(mind)
                ruled += 1
        self._ask(now_ns)
        self._look_ahead.think(now_ns)
        self._set_timer()

    def loading_ahead(self, npcs: Iterable[Npc]) -> Steps[None]:
        """Brings trunks into place in the background, before anybody is asked, a few at a time while there is room."""
        self._to_load.extend(npcs)
        while self._load_some():
            yield

    def _load_some(self) -> bool:
        """Begins to load a few; whether there may be more to begin now."""
        for _ in range(LOADED_AT_ONCE):
            if not self._to_load or self._loads >= LOADS_MAX:
                return False
            if not self._roomy():
                self._to_load.clear()
                return False
            npc = self._to_load.popleft()
            if not self._worlds.has(npc):
                continue  # it was removed meanwhile
            try:
                self._load(npc, self._loaded_ahead)
            except (Overloaded, Draining):
                self._to_load.clear()
                return False
            self._loads += 1
        return True

    def _loaded_ahead(self, _: Ended) -> None:
        self._loads -= 1
        if not self._loading:
            self._loading = True
            asyncio.get_running_loop().call_soon(self._load_on)

    def _load_on(self) -> None:
        """Once for all loads that a step has ended; others have their turn between."""
        self._loading = self._load_some()
        if self._loading:
            asyncio.get_running_loop().call_soon(self._load_on)

    def _load(self, npc: Npc, on_end: Callable[[Ended], None]) -> None:
        work = self._works.ready(npc, self._trunk_route, self._clock(), (npc.key, "trunk"))
        self._door.submit(work, on_end)

    def remove(self, npc: Npc) -> None:
        """Takes an NPC out of the table."""
        mind = self._table.drop(npc)
        if mind is not None:
            for ticket in (mind.asking.ticket if mind.asking else None, mind.barking):
                if ticket is not None:
                    ticket.cancel()
            self._leave_line(mind)
            self._glimpsed.discard(mind)
            mind.game.due.discard(mind)
            mind.game.put_off.discard(mind)
            self._attention.remove(mind)
            self._look_ahead.remove(mind)
        self._door.forget(TrunkKey(npc.key, ""))

    def end_world(self, tenant: str, world_id: str) -> None:
        """A world is deleted: its NPCs were removed before, and a pause of it ends with it."""
        for key in [key for key in self._callers if key[:2] == (tenant, world_id)]:
            self._callers.pop(key, None)

    def replaced(self, npc: Npc) -> None:
        """An NPC was registered anew (other trunk or lease): its mind goes on with what it saw, a new lease's ticks
        begin. What it does in another world, or as another, is asked anew.
        """
        mind = self._table.mind(npc.key)
        if mind is not None:
            if mind.npc.lease_epoch != npc.lease_epoch:
                mind.tick = -1
                mind.glimpse = None
                self._glimpsed.discard(mind)
            if mind.intent is not None and (mind.npc.lease_epoch == npc.lease_epoch or mind.npc.spec != npc.spec):
                mind.intent.state = OUTDATED
            mind.npc = npc
            mind.answers.clear()

    # -- looking -----------------------------------------------------------------------------------------------

    def _look(self, mind: Mind, glimpse: Glimpse) -> intents_pb2.NpcError | None:
        """Takes in what an observation says; what is wrong with it, if something is."""
        said = glimpse.said
        mind.glimpse = None
        self._glimpsed.discard(mind)
        try:
            seen = observation(said, glimpse.game_time_ms, glimpse.at_ns)
        except CallerError as error:
            return _error(said.npc_id, "INVALID_FIELD", error.field, str(error))
        # An event is urgent when it happens, not for as long as the game goes on mentioning it.
        if seen.events and (mind.seen is None or any(event not in mind.seen.events for event in seen.events)):
            mind.urgent = True
        mind.seen, mind.tick = seen, said.tick
        before, mind.state = mind.state, state_of(seen, self._layout.caps.percepts)
        mind.look_ns = glimpse.at_ns + self._look_ns[mind.activation]
        self._attention.saw(mind, seen)
        self._look_ahead.saw(mind, seen)
        if mind.state != before:
            mind.changed_ns = seen.at_ns
            self._look_ahead.came_true(mind, mind.state, self._wait_ns(mind, seen.at_ns), seen.at_ns)
        return None

    def _look_now(self, mind: Mind) -> None:
        """Looks at what nobody looked at yet."""
        glimpse = mind.glimpse
        if glimpse is not None:
            error = self._look(mind, glimpse)
            if error is not None and glimpse.complain is not None:
                glimpse.complain(error)

    def _sweep(self, now_ns: int) -> int:
        """Looks at glimpses that no newer observation came for; how many."""
        left = [m for m in self._glimpsed if now_ns >= m.look_ns + NEXT_WITHIN_NS]
        for mind in left[:RULED_MAX]:
            self._look_now(mind)
            self._judge(mind)
        self._sweep_ns = now_ns if len(left) > RULED_MAX else now_ns + SWEEP_EVERY_NS
        return min(len(left), RULED_MAX)

    def _judge(self, mind: Mind) -> None:
        """What follows from what a mind sees: its intent stands, is answered from memory, or is to be asked for."""
        seen, intent = mind.seen, mind.intent
        assert seen is not None
        if intent is not None and intent.state == mind.state:
            self._table.confirm(mind, seen)
            if intent.source is not Source.POLICY or (mind.activation is Activation.AMBIENT and not mind.urgent):
                mind.urgent = False
                mind.due_ns = 0
                self._leave_line(mind)
                if self._settings.change_driven or mind.activation is Activation.AMBIENT:
                    return
        elif self._slot_is_over(mind, seen.at_ns) and self._answer_from_memory(mind, seen.at_ns):
            return
        if mind.asking is None or mind.asking.state != mind.state:
            self._set_due(mind)

    def _wait_ns(self, mind: Mind, now_ns: int) -> int:
        """How long a mind whose state has changed would wait until it is asked."""
        time = mind.game.time
        if time.paused:
            return 0
        at_ns = due_ns(mind.npc.number, self._slot_of(mind), time.at(now_ns), mind.asked_ns, mind.urgent)
        return max(0, time.wall(at_ns) - now_ns)

    def _slot_is_over(self, mind: Mind, now_ns: int) -> bool:
        """Whether the NPC may have another intent already: more often than it may be asked, and it would jitter."""
        return mind.game.time.at(now_ns) - mind.stood_ns >= self._slot_of(mind) // (4 if mind.urgent else 2)

    def _slot_of(self, mind: Mind) -> int:
        """How long a slot of the NPC's cadence lasts, in its game's time."""
        return mind.game.time.slot_ns(self._slot_ns[mind.activation])

    # -- attention ---------------------------------------------------------------------------------------------

    def _attend(self, now_ns: int) -> None:
        """Begins to decide about attention when that is due. With few NPCs it is done at once."""
        due_ns = self._attention.due_ns()
        if self._deciding is None and due_ns is not None and due_ns <= now_ns:
            self._deciding = self._attending(now_ns)
            self._go_on()

    def _go_on(self) -> None:
        """Goes on deciding about attention for a slice."""
        assert self._deciding is not None
        began_ns = self._clock()
        try:
            next(self._deciding)
            while self._clock() - began_ns < self._slice_ns:
                next(self._deciding)
        except StopIteration:
            self._deciding = None
            self._pump_soon()
        else:
            collect_young()
            asyncio.get_running_loop().call_soon(self._go_on)  # others have their turn first

    def _attending(self, now_ns: int) -> Steps[None]:
        """Has it decided who gets how much attention, and what follows for those whose attention changed."""
        overdue, self._overdue = self._overdue, 0
        changes, newcomers = yield from self._attention.deciding(overdue, now_ns)
        active = self._attention.activations.active
        self._look_ns[Activation.ACTIVE] = min(active * S // self._settings.looks_per_s, ACTIVE_LOOK_MAX_NS)
        for change in changes:
            yield
            mind = change.who
            # Between two steps others may have come to another decision.
            if mind.seen is None or mind.removed or mind.activation is not change.now:
                continue
            if mind.waiting_ns:
                self.share.add(mind, change.now, mind.urgent, mind.waiting_ns)
            if change.now is Activation.AMBIENT:
                self._look_ahead.rest(mind)
                if not mind.urgent:
                    mind.due_ns = 0
                    self._leave_line(mind)
                    if mind.asking is None and (mind.intent is None or mind.intent.state != mind.state):
                        self._answer_by_policy(mind, mind.seen.at_ns)
            elif change.now < change.before:
                # It has somebody's attention now: what it does should be of now, and by the model.
                self._look_now(mind)
                mind.look_ns = 0
                if change.before is Activation.AMBIENT:
                    self._load_then_ask(mind, len(changes) > CROWD, now_ns)
                elif not self._stands(mind):
                    self._set_due(mind, at_once=True)
        for mind in newcomers:
            yield
            if mind.removed or mind.seen is None or mind.due_ns or mind.waiting_ns or mind.loading_ns:
                continue
            if mind.intent is None or mind.intent.state != mind.state:
                self._judge(mind)

    def _load_then_ask(self, mind: Mind, in_a_crowd: bool, now_ns: int) -> None:
        """Brings the KV of an NPC that got attention into place; then it is due: at once, or when its slot comes if
        that happens to a crowd. Until then it is the policy's.
        """
        if mind.loading_ns:
            return

        def loaded(_: Ended) -> None:
            mind.loading_ns = 0
            if mind.removed or mind.activation is Activation.AMBIENT or self._stands(mind) or mind.asking:
                return
            if in_a_crowd and not mind.urgent:
                if mind.intent is None or mind.intent.state != mind.state:
                    self._answer_by_policy(mind, self._clock())
                if mind.asked_ns is None:
                    mind.asked_ns = 0  # the first time is no reason to be asked out of turn
                self._due_from(mind, self._clock(), urgent=False)
            else:
                self._set_due(mind, at_once=True)
            self._pump_soon()

        try:
            self._load(mind.npc, loaded)
        except (Overloaded, Draining):
            self._set_due(mind, at_once=True)
            return
        mind.loading_ns = now_ns
        if not mind.waiting_ns:
            mind.late += 1
            self._push(now_ns + self._settings.stall_ms * MS, mind, mind.late)

    def _stands(self, mind: Mind) -> bool:
        """Whether the intent is the model's, for what the NPC sees now."""
        intent = mind.intent
        return intent is not None and intent.state == mind.state and intent.source is not Source.POLICY

    # -- asking ------------------------------------------------------------------------------------------------

    def _set_due(self, mind: Mind, at_once: bool = False) -> None:
        seen = mind.seen
        assert seen is not None
        if mind.waiting_ns:
            if mind.urgent:
                self.share.add(mind, mind.activation, True, mind.waiting_ns)
            return  # it is in line; it will be asked about the newest
        if (mind.loading_ns or not mind.decided) and not mind.urgent:
            return  # until it is decided about its attention, or its KV is in place
        if mind.activation is Activation.AMBIENT and not mind.urgent:
            self._answer_by_policy(mind, seen.at_ns)
            return
        # What it gets attention for was seen a while ago; it is due from now on.
        self._due_from(mind, self._clock() if at_once else seen.at_ns, mind.urgent or at_once)

    def _due_from(self, mind: Mind, received_ns: int, urgent: bool) -> None:
        game = mind.game
        if game.time.paused:
            game.put_off.add(mind)
            return
        at_ns = due_ns(mind.npc.number, self._slot_of(mind), game.time.at(received_ns), mind.asked_ns, urgent)
        if mind.due_ns and mind.due_game_ns <= at_ns:
            return  # it is due already; the newest observation will be asked about
        mind.due_game_ns = at_ns
        self._schedule(mind)

    def _schedule(self, mind: Mind) -> None:
        """Has the mind lined up when its game's time comes to its due moment."""
        at_ns = mind.due_ns = mind.game.time.wall(mind.due_game_ns)
        mind.game.due.add(mind)
        # Invariant: a mind stands in the heap once for each of its moments, however often it changes until then.
        if at_ns not in mind.moments:
            mind.moments.add(at_ns)
            self._push(at_ns, mind, 0)

    def _schedule_anew(self, mind: Mind) -> None:
        """The same at another pace, at which a slot has another length: none is further away than a slot of now."""
        latest_ns = mind.game.time.at(self._clock()) + self._slot_of(mind)
        mind.due_game_ns = min(mind.due_game_ns, latest_ns)
        self._schedule(mind)

    def _line_up(self, mind: Mind) -> None:
        """A mind is due: it gets into line, and the policy looks whether it is answered in time."""
        due_at_ns, mind.due_ns = mind.due_ns, 0
        mind.game.due.discard(mind)
        if mind.game.time.paused:
            mind.game.put_off.add(mind)
            return
        received_ns = mind.glimpse.at_ns if mind.glimpse is not None else 0
        self._look_now(mind)
        assert mind.seen is not None, "a mind is due because it saw something"
        if received_ns and self._stands(mind) and self._settings.change_driven:
            self._table.confirm(mind, mind.seen)
            return
        # Due is the later of "observation received" and "cadence due".
        mind.waiting_ns = max(due_at_ns, mind.seen.at_ns)
        self.share.add(mind, mind.activation, mind.urgent, mind.waiting_ns)
        mind.late += 1
        self._push(mind.waiting_ns + self._settings.stall_ms * MS, mind, mind.late)

    def _leave_line(self, mind: Mind) -> None:
        if mind.waiting_ns:
            mind.waiting_ns = 0
            self.share.remove(mind)

    def _ask(self, now_ns: int) -> None:
        """Asks as many of those in line as have their turn, as one group."""
        asked: list[Question] = []
        for mind in self.share.take(now_ns, self._tokens_each):
            question = self._question(mind, now_ns)
            if question is None:
                self.share.give_back(now_ns)
            else:
                asked.append(question)
        if not asked:
            return
        group = [(self._work(q), _ender(self._answered, q), taker(q)) for q in asked]
        try:
            tickets = self._door.submit_group(group)
        except (Overloaded, Draining):
            for q in asked:
                self.share.give_back(now_ns)
                self._answer_by_policy(q.mind, q.due_ns)
            return
        for q, ticket in zip(asked, tickets, strict=True):
            # A question that is still on its way is superseded while it waits; while it runs, its answer still counts.
            q.ticket = ticket
            q.mind.asking = q
            q.mind.asked_ns = q.mind.game.time.at(now_ns)

    def _question(self, mind: Mind, now_ns: int) -> Question | None:
        """What a mind whose turn it is will be asked; None when nothing is left to ask."""
        due_at_ns, mind.waiting_ns = mind.waiting_ns, 0
        if mind.game.time.paused:
            mind.game.put_off.add(mind)
            return None
        self._look_now(mind)
        seen = mind.seen
        assert seen is not None
        if self._stands(mind) and self._settings.change_driven:
            mind.urgent = False
            self._table.confirm(mind, seen)
            return None
        if self._answer_from_memory(mind, due_at_ns):
            return None
        mind.urgent = False
        return self._question_about(mind, seen, mind.state, due_at_ns)

    def _question_about(self, mind: Mind, seen: Observation, state: str, due_at_ns: int) -> Question:
        """A question about what an NPC sees, or may see soon."""
        world = self._worlds.of_npc(mind.npc.key)
        perception = self._layout.perceive(seen)
        nearest = next((p.entity_id for p in perception.percepts if p.kind == PLAYER_KIND), "")  # the most notable one
        digest = self._digest(mind.npc.key, nearest) if nearest else ""
        tail = self._layout.intent_tail(perception, digest)
        return Question(mind, mind.npc, world, seen, state, perception, tail, due_at_ns)

    def _work(self, q: Question) -> Work:
        npc = q.mind.npc
        choice = q.world.choices[len(q.perception.percepts)]
        return self._works.chooses(npc, self._route, q.tail, choice, q.due_ns, (npc.key, "intent"))

    # -- answers -----------------------------------------------------------------------------------------------

    def _answered(self, q: Question, ended: Ended) -> None:
        mind, now_ns = q.mind, self._clock()
        self.share.ended(now_ns)
        if len(self.share):
            self._pump_soon()
        if mind.asking is q:
            mind.asking = None
        if mind.removed or ended.finish in (Finish.SUPERSEDED, Finish.CANCELLED):
            return
        if q.npc is not mind.npc:
            # The world or the NPC was changed while the model thought: what it said is about the old one.
            if mind.asking is None and not mind.due_ns:
                self._set_due(mind)
                self._set_timer()
            return
        if ended.finish is not Finish.STOP:
            self._answer_by_policy(mind, q.due_ns)
        else:
            self._attention.carrying.answered(now_ns - q.due_ns)
            answer = answer_of(q, ended, now_ns)
            self._remember(mind, q.state, answer)
            if mind.state != q.state and self._stands(mind):
                return  # it sees again what it has an answer to
            # While it was thought about, newer observations may have said the same: the intent is as young as they are.
            seen = mind.seen if mind.seen is not None and mind.state == q.state else q.seen
            self._stand(mind, answer, q.state, seen, q.due_ns)
            if answer.speaks:
                self._barks.bark(q)
        if mind.seen is not None and mind.state != q.state and not mind.due_ns and mind.asking is None:
            self._set_due(mind)
            self._set_timer()

    def _stand(self, mind: Mind, answer: Answer, state: str, seen: Observation, due_at_ns: int) -> None:
        mind.late += 1
        self._table.stand(
            mind,
            action=answer.action,
            target=answer.target,
            emotion=answer.emotion,
            bark=answer.bark,
            source=Source.PREDICTED if answer.foreseen else Source.MODEL,
            state=state,
            seen=seen,
            due_ns=due_at_ns,
            confidence=answer.confidence,
        )

    def _remember(self, mind: Mind, state: str, answer: Answer) -> None:
        if self._settings.remember or answer.foreseen:
            mind.answers.pop(state, None)
            mind.answers[state] = answer
            while len(mind.answers) > self._settings.remember + self._settings.prediction.per_npc_max:
                del mind.answers[next(iter(mind.answers))]

    def _answer_from_memory(self, mind: Mind, due_at_ns: int) -> bool:
        """Stands what the model said to the very same question before; whether it did."""
        answer = mind.answers.get(mind.state)
        if answer is None or not self._settings.change_driven:
            return False
        seen = mind.seen
        assert seen is not None
        question = self._question_about(mind, seen, mind.state, due_at_ns)
        if seen.at_ns - answer.at_ns > self._settings.remember_s * S or question.tail != answer.tail:
            del mind.answers[mind.state]
            return False
        mind.urgent = False
        mind.due_ns = 0
        self._leave_line(mind)
        self._table.counts.remembered += 1
        bark = answer.bark if answer.bark and self._barks.said_ahead(mind) else ""
        self._stand(mind, answer._replace(bark=bark), mind.state, seen, due_at_ns)
        if answer.speaks and not bark:
            question.chosen = answer.chosen
            self._barks.bark(question)
        return True

    def _foreseen(self, mind: Mind, state: str, answer: Answer) -> None:
        """The model answered to a state before it came true, or while it did."""
        self._remember(mind, state, answer)
        if state == mind.state and mind.seen is not None and not self._stands(mind) and mind.asking is None:
            self._answer_from_memory(mind, mind.waiting_ns or mind.due_ns or mind.seen.at_ns)

    def _rule_if_late(self, mind: Mind, late: int, now_ns: int) -> bool:
        """Lets the policy answer for a mind that has no answer in time; whether it did."""
        asking = mind.asking
        since_ns = mind.waiting_ns or (asking.due_ns if asking is not None else mind.loading_ns)
        if mind.removed or mind.late != late or not since_ns:
            return False
        if mind.waiting_ns and mind.game.time.paused:
            self._leave_line(mind)
            mind.game.put_off.add(mind)
            return False
        within_ns = since_ns + self._settings.answer_within_ms * MS
        stalled = self._stalled(now_ns)
        if now_ns < within_ns and not stalled:
            self._push(min(within_ns, now_ns + STALL_LOOK_NS), mind, late)
            return False
        self._overdue += not stalled and not mind.loading_ns
        self._look_now(mind)
        intent = mind.intent
        if intent is None or intent.state != mind.state:
            # What it sees may have changed since it became due: then that is what is answered.
            self._answer_by_policy(mind, max(since_ns, mind.changed_ns))
        if mind.waiting_ns or mind.loading_ns or stalled:  # as long as it waits, the rules keep up with what it sees
            again_ms = self._settings.stall_ms if stalled else self._settings.answer_within_ms
            self._push(now_ns + again_ms * MS, mind, mind.late)
        return True

    def _answer_by_policy(self, mind: Mind, due_at_ns: int) -> None:
        """The rules' answer to what the NPC sees now. It may still be asked: then the model's takes its place."""
        self._look_now(mind)
        seen = mind.seen
        assert seen is not None
        world = self._worlds.of_npc(mind.npc.key)
        answer = evaluate(world.policy, mind.npc.archetype_id, seen)
        assert answer is not None, "a compiled policy ends with a row that holds for everybody"
        mind.late += 1
        self._table.stand(
            mind,
            action=answer.action,
            target=answer.target.entity_id if answer.target else "",
            emotion=answer.emotion,
            bark=answer.bark,
            source=Source.POLICY,
            state=mind.state,
            seen=seen,
            due_ns=due_at_ns,
            confidence=0.0,
        )

    # -- the timer ---------------------------------------------------------------------------------------------

    def _push(self, at_ns: int, mind: Mind, late: int) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_ns, self._order, mind, late))

    def _pop(self) -> tuple[Mind, int]:
        at_ns, _, mind, late = heapq.heappop(self._heap)
        if not late:
            mind.moments.discard(at_ns)
        return mind, late

    def _set_timer(self) -> None:
        popped = 0
        while self._heap and popped < POPPED_MAX and _stale(self._heap[0]):
            self._pop()
            popped += 1
        # Only a due mind brings new work; a late answer does not.
        self._expect(self._heap[0][0] if self._heap and not self._heap[0][3] else None)
        now_ns = self._clock()
        attend_ns = self._attention.due_ns() if self._deciding is None else None
        moments = [at_ns for at_ns in (attend_ns, self.share.next_ns(now_ns)) if at_ns is not None]
        if self._heap:
            moments.append(self._heap[0][0])
        if self._glimpsed:
            moments.append(self._sweep_ns)
        if moments:
            self._wake(min(*moments, now_ns + WAKE_MAX_NS))

    def _pump_soon(self) -> None:
        """A place is free: pump() in this turn of the loop, once for all that the engine made known."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self.pump)

    def _wake(self, at_ns: int) -> None:
        """Has pump() called at a moment, unless it is earlier anyway."""
        now_ns = self._clock()
        if self._timer is not None:
            if now_ns < self._timer_ns <= at_ns:
                return
            self._timer.cancel()
        self._timer_ns = max(at_ns, now_ns)
        # Timers may fire a millisecond early: pump() then finds nothing due and sets the next one.
        self._timer = asyncio.get_running_loop().call_later(max(0, at_ns - now_ns) / 1e9, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.pump()


def _ender(answered: Callable[[Question, Ended], None], q: Question) -> Callable[[Ended], None]:
    return lambda ended: answered(q, ended)


def _stale(entry: tuple[int, int, Mind, int]) -> bool:
    at_ns, _, mind, late = entry
    return mind.removed or (mind.late != late if late else mind.due_ns != at_ns)


def _overrides(mind: Mind, said: intents_pb2.Observation) -> bool:
    """Whether the game wants another activation than it did last."""
    before = mind.seen.override if mind.seen is not None else None
    return (OVERRIDES.get(said.activation) if said.has_activation else None) is not before


def _error(npc_id: str, code: str, field_name: str, text: str) -> intents_pb2.NpcError:
    return intents_pb2.NpcError(npc_id=npc_id[:ID_BYTES_MAX], code=code, field=field_name, message=text)
