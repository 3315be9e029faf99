"""One builder makes every work from an NPC, a route and a script, in the tokens of the route's model."""

from dataclasses import replace

import numpy as np
import pytest

from core.errors import CallerError
from core.observation import Observation, Percept
from core.script import SectionKind, npc_line, player_line
from core.words import Tier
from core.work import GREEDY, Sampling, Work
from daemon.worlds.limits import WorldLimits
from daemon.worlds.policy_file import load_policy
from daemon.worlds.works import Works
from daemon.worlds.world import Npc, Voice, World
from daemon.worlds.worlds import Worlds
from engines.sim import SimVocab
from npcd.v1 import npcs_pb2
from prompts.caps import Caps
from prompts.layout import Layout
from prompts.marks import MARKS
from tests.daemon.rig import specs, world
from tiers.promises import Promises
from tiers.routing import LLAMA, Route, Routes, WorkKind

OTHER = "other"
NOW_NS = 5_000_000
ROUTES = Routes()
BARK, SUMMARY, TRUNK = (ROUTES.of(kind) for kind in (WorkKind.BARK, WorkKind.SUMMARY, WorkKind.TRUNK))
SEEN = Observation(1, (Percept("w1", "wolf", "hostile", 6.0), Percept("p1", "player", "friendly", 3.0)))


class Village:
    """A small world for two models: one made for npcd, and one that reads plain text."""

    def __init__(self) -> None:
        self.native, self.plain = Layout(SimVocab(list(MARKS.values()))), Layout(SimVocab([], end=""))
        table = Worlds([self.native, self.plain], WorldLimits(), load_policy())
        self.world: World = table.define("", world())[0]
        _, (_, self.npc), _ = table.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(2)))
        self.works = Works({LLAMA: self.native, OTHER: self.plain}, Promises())


@pytest.fixture
def village() -> Village:
    """A village of its own for each test."""
    return Village()


def bounds(work: Work) -> tuple[Tier, str, int, int, int]:
    """Tier, partner, tokens at most, due moment, and number among the neighbours."""
    return work.tier, work.key.partner, work.max_tokens, work.due_ns, work.near


def reads(work: Work, layout: Layout, npc: Npc) -> bool:
    """True when the tokens are the layout's for the script."""
    assert work.script is not None
    trunk = layout.trunk(work.script)
    assert trunk.shared == work.shared > 0
    tail = layout.encode(work.script.tail)
    return np.array_equal(trunk.tokens, work.trunk) and tuple(work.tail.tolist()) == tail


@pytest.mark.parametrize("engine", [LLAMA, OTHER])
def test_an_intent_is_asked_in_the_tokens_of_its_routes_model(village: Village, engine: str) -> None:
    """One layout made the tail. A route to the other model has the same text, in that model's tokens."""
    route, npc = replace(ROUTES.intent, engine=engine), village.npc
    layout = village.works.layout(route)
    perception = village.native.perceive(SEEN)
    choice = village.world.choices[len(perception.percepts)]
    tail = village.native.intent_tail(perception)
    work = village.works.chooses(npc, route, tail, choice, NOW_NS, "newer")
    assert bounds(work) == (Tier.GOLD, "", max(8, layout.graph(choice).longest), NOW_NS, npc.number)
    assert reads(work, layout, npc) and work.script is not None and work.script.tail == tail.sections
    assert (work.choice, work.options, work.supersede) == (layout.graph(choice), choice, "newer")
    assert work.deadline_ns == Promises().deadline_ns(Tier.GOLD, NOW_NS)
    assert not work.stop_ids and work.sampling is GREEDY


def test_a_reply_goes_on_from_its_conversation(village: Village) -> None:
    """Its trunk is persona and turns. The NPC's earlier lines and the ends of an answer are in its model's tokens."""
    npc, layout = village.npc, village.native
    turns = [player_line("Hello.", "Tom"), npc_line("Go away.")]
    line = player_line("Why?", "Tom")
    sampling = Sampling(0.7, seed=3)
    script, tail = npc.script.goes_on(turns), layout.talk_tail(line, layout.perceive(SEEN), "Tom, a friend.")
    work = village.works.speaks(npc, ROUTES.reply, tail, NOW_NS, script, "p1", 33, sampling, turns[1:])
    assert bounds(work) == (Tier.SILVER, "p1", 33, NOW_NS, -1)
    assert reads(work, layout, npc) and work.sampling == sampling
    assert work.said == layout.npc_turn("Go away.")
    assert (work.stop_ids, work.closing) == (layout.stop_ids, layout.closing_ids)
    assert work.script is not None and work.script.sections == (*npc.script.sections, *turns)
    assert [s.kind for s in work.script.tail] == [
        SectionKind.DIGEST, SectionKind.SIGHT, SectionKind.PLAYER, SectionKind.ANSWER,
    ]  # fmt: skip


def test_a_bark_is_as_long_as_its_route_allows(village: Village) -> None:
    """It reads the NPC's own script, and is placed beside its neighbours."""
    tail = village.native.bark_tail(
        village.native.intent_tail(village.native.perceive(SEEN)), ("flee", "nobody", "calm")
    )
    work = village.works.speaks(village.npc, BARK, tail, NOW_NS, supersede="bark")
    assert bounds(work) == (Tier.GOLD, "", BARK.output_max, NOW_NS, village.npc.number)
    assert reads(work, village.native, village.npc) and work.supersede == "bark"


def test_a_summary_runs_on_a_fork_without_the_adapter(village: Village) -> None:
    """The summary uses the model that computed the NPC's trunk."""
    npc = replace(village.npc, voices={LLAMA: Voice("lively", "")})
    script = npc.script.goes_on([player_line("Hello."), npc_line("Go away.")])
    tail = village.native.summary_tail()
    work = village.works.sums_up(npc, SUMMARY, tail, NOW_NS, script, "p1", "summary/1")
    assert bounds(work) == (Tier.BRONZE, "p1", SUMMARY.output_max, NOW_NS, -1)
    assert (work.key.fork, work.adapter) == ("summary/1", "") and reads(work, village.native, npc)
    assert village.works.speaks(npc, ROUTES.reply, tail, NOW_NS, script, "p1").adapter == "lively"


def test_a_trunk_is_made_ready_without_a_question(village: Village) -> None:
    """The work has no tail and no tokens. It has the promise of its tier, or of another one."""
    route = Route(Tier.SILVER)
    work = village.works.ready(village.npc, route, NOW_NS, "trunk")
    assert bounds(work) == (Tier.SILVER, "", 0, NOW_NS, village.npc.number) and not len(work.tail)
    assert reads(work, village.native, village.npc)
    assert work.deadline_ns == Promises().deadline_ns(Tier.SILVER, NOW_NS)
    patient = village.works.ready(village.npc, route, NOW_NS, "trunk", partner="p1", deadline=Tier.BRONZE)
    assert patient.deadline_ns == Promises().deadline_ns(Tier.BRONZE, NOW_NS) and patient.near == -1


def test_texts_of_a_world_are_checked_against_every_model_that_may_read_them() -> None:
    """A world, an archetype or a persona that is too long for one of them is refused, and nothing changes."""
    roomy = Layout(SimVocab(list(MARKS.values())), Caps(lore=900, archetype=900, persona=900))
    narrow = Layout(SimVocab([], end=""))
    long, limit = "word " * 500, r"500 tokens, the limit is 320 \(caps.lore\)"
    Worlds([roomy], WorldLimits(), load_policy()).define("", world(lore=long))
    for layouts in ([roomy, narrow], [narrow, roomy]):
        table = Worlds(layouts, WorldLimits(), load_policy())
        with pytest.raises(CallerError, match=limit):
            table.define("", world(lore=" ".join(long.split())))
        kind = npcs_pb2.Archetype(archetype_id="ghoul", description=long)
        with pytest.raises(CallerError, match=r"archetypes\[ghoul\].description"):
            table.define("", world(archetypes=[kind]))
        with pytest.raises(CallerError, match=r"personas\[Odo\].text"):
            table.define("", world(personas=[npcs_pb2.Persona(persona_id="odo", name="Odo", text=long)]))
        both = [npcs_pb2.Persona(persona_id=f"p{n}", name=f"Odo {n}", text=long) for n in range(2)]
        with pytest.raises(CallerError, match=r"160 tokens .*shorten Odo 0 \(.*\), Odo 1 \("):
            table.define("", world(personas=both))
        assert len(table) == 0
        table.define("", world())
        own = npcs_pb2.NpcSpec(npc_id="npc0", archetype_id="villager")
        own.persona.CopyFrom(npcs_pb2.Persona(name="Odo", text=long))
        with pytest.raises(CallerError, match=r"personas\[Odo\].text"):
            table.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=[own]))
        assert not table.world("", "vale").npcs
