"""Makes every work that an engine is asked: from an NPC, a route and a script, in the tokens of the route's model."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping

import numpy as np

from core.choice import Choice, Tokens
from core.script import Script, Section
from core.words import Tier
from core.work import GREEDY, Sampling, Work
from daemon.worlds.world import Npc
from prompts.guard_rules import GuardSettings
from prompts.layout import ANSWER, Layout, Tail
from tiers.promises import Promises
from tiers.routing import Route

NO_TOKENS: Tokens = np.empty(0, np.int32)


class Works:
    """One builder for all. `layouts` are by a route's engine; works for `text_only` engines have no tokens. Without a
    `script` a work reads the NPC's own, as intents do.
    """

    def __init__(
        self,
        layouts: Mapping[str, Layout],
        promises: Promises,
        text_only: Collection[str] = (),
        guards: GuardSettings = GuardSettings(),
    ) -> None:
        self.guards = guards
        self._layouts = layouts
        self._promises = promises
        self._text_only = frozenset(text_only)

    def layout(self, route: Route) -> Layout:
        """The layout of the model that works of a route go to."""
        return self._layouts[route.engine]

    def made_for_npcd(self, route: Route) -> bool:
        """True if works of a route go to a model that was made for npcd."""
        return self._layouts[route.engine].native and route.engine not in self._text_only

    def ready(
        self,
        npc: Npc,
        route: Route,
        now_ns: int,
        supersede: Hashable,
        script: Script | None = None,
        partner: str = "",
        deadline: Tier | None = None,
    ) -> Work:
        """Brings a trunk into place and asks nothing. `deadline` is the tier whose promise it keeps (None: its own)."""
        work = self._work(npc, route, script or npc.script, None, 0, now_ns, partner)
        if deadline is not None:
            work.deadline_ns = self._promises.deadline_ns(deadline, now_ns)
        work.supersede = supersede
        return work

    def chooses(self, npc: Npc, route: Route, tail: Tail, choice: Choice, due_ns: int, supersede: Hashable) -> Work:
        """Asks an NPC for one of the answers of a choice."""
        if route.engine in self._text_only:
            work = self._work(npc, route, npc.script, tail, route.output_max, due_ns)
        else:
            graph = self._layouts[route.engine].graph(choice)
            work = self._work(npc, route, npc.script, tail, max(route.output_max, graph.longest), due_ns)
            work.choice = graph
        work.options = choice
        work.supersede = supersede
        return work

    def speaks(
        self,
        npc: Npc,
        route: Route,
        tail: Tail,
        now_ns: int,
        script: Script | None = None,
        partner: str = "",
        max_tokens: int = 0,
        sampling: Sampling = GREEDY,
        said: Iterable[Section] = (),
        supersede: Hashable = None,
    ) -> Work:
        """Asks an NPC for words: `max_tokens` of them, or as many as the route allows. `said` are its last lines."""
        work = self._work(npc, route, script or npc.script, tail, max_tokens or route.output_max, now_ns, partner)
        work.sampling = sampling
        if route.engine not in self._text_only:
            layout = self._layouts[route.engine]
            work.said = layout.lines(said)
            work.stop_ids, work.closing = layout.stop_ids, layout.closing_ids
            # If the finished turn is exactly what the lane holds, it is the trunk already.
            work.adopt = bool(partner) and tail.sections[-1:] == (ANSWER,) and layout.stays(tail) == tail.sections[:-1]
        work.supersede = supersede
        return work

    def sums_up(self, npc: Npc, route: Route, tail: Tail, now_ns: int, script: Script, partner: str, fork: str) -> Work:
        """Asks what is to be remembered of a conversation: on a fork of its trunk, and as the model without adapter."""
        work = self.speaks(npc, route, tail, now_ns, script, partner)
        work.key = work.key._replace(fork=fork)
        work.adapter = npc.voice(route.engine).trunk_adapter
        return work

    def _work(
        self,
        npc: Npc,
        route: Route,
        script: Script,
        tail: Tail | None,
        max_tokens: int,
        due_ns: int,
        partner: str = "",
    ) -> Work:
        trunk, tail_tokens, shared = NO_TOKENS, NO_TOKENS, 0
        if route.engine not in self._text_only:
            layout = self._layouts[route.engine]
            trunk, shared = layout.trunk(script)
            tail_tokens = np.asarray(layout.tail(tail) if tail is not None else (), np.int32)
        return Work(
            tier=route.tier,
            key=npc.trunk_key(partner, route.engine),
            trunk=trunk,
            tail=tail_tokens,
            max_tokens=max_tokens,
            shared=shared,
            due_ns=due_ns,
            deadline_ns=self._promises.deadline_ns(route.tier, due_ns),
            near=npc.number if not partner else -1,
            adapter=npc.voice(route.engine).adapter,
            backend=route.engine,
            script=script.asks(tail.sections) if tail is not None else script,
        )
