"""Definitions are checked as a whole, change nothing when refused, and keep leases right."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from core.errors import CallerError, NotFound, Overloaded, Stale
from core.steps import Steps, at_once
from daemon.worlds.limits import WorldLimits
from daemon.worlds.policy_file import load_policy
from daemon.worlds.worlds import Worlds
from engines.sim import SimVocab
from npcd.v1 import npcs_pb2
from prompts.layout import Layout
from prompts.marks import MARKS
from tests.daemon.rig import specs, world


def worlds(limits: WorldLimits = WorldLimits()) -> Worlds:
    """An empty table."""
    return Worlds([Layout(SimVocab(list(MARKS.values())))], limits, load_policy())


def register(npcs: list[npcs_pb2.NpcSpec], take_over: bool = False) -> npcs_pb2.RegisterRequest:
    """A request."""
    return npcs_pb2.RegisterRequest(world_id="vale", npcs=npcs, take_over=take_over)


def test_the_same_content_again_changes_nothing_and_other_content_is_a_new_version() -> None:
    """The content hash decides; expected_version guards against a lost update."""
    table = worlds()
    first, changed = table.define("", world())
    assert changed and first.version == 1
    again, changed = table.define("", world(expected_version=1))
    assert not changed and again is first
    other, changed = table.define("", world(lore=" The bell rang."))
    assert changed and other.version == 2 and other.content_hash != first.content_hash
    with pytest.raises(Stale, match="expected_version"):
        table.define("", world(expected_version=1))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r.ClearField("archetypes"), "archetypes"),
        (lambda r: r.ClearField("actions"), "actions"),
        (lambda r: r.ClearField("emotions"), "emotions"),
        (lambda r: setattr(r, "world_id", ""), "world_id"),
        (lambda r: setattr(r, "world_id", "w" * 65), "world_id"),
        (lambda r: setattr(r, "lore", "word " * 400), "lore"),
        (lambda r: r.actions.add(word="idle"), "actions"),
        (lambda r: r.actions.add(word="run very far away"), "actions[4].word"),
        (lambda r: r.emotions.append("calm"), "emotions"),
        (lambda r: r.personas.add(persona_id="x", name="X", text="word " * 300), "personas[X].text"),
        (lambda r: r.policy.rows.add(action="fly", emotion="calm"), "policy.rows[0].action"),
        (lambda r: r.policy.rows.add(action="idle", emotion="bored"), "policy.rows[0].emotion"),
        (lambda r: r.policy.rows.add(action="attack", emotion="calm"), "policy.rows[0]"),
        (
            lambda r: r.policy.rows.add(action="idle", emotion="calm", health_max=float("nan")),
            "policy.rows[0].health_max",
        ),
    ],
)
def test_bad_definitions_name_the_field_and_change_nothing(change, field) -> None:  # type: ignore[no-untyped-def]
    """The present version stays."""
    table = worlds()
    before, _ = table.define("", world())
    request = world()
    change(request)
    with pytest.raises(CallerError) as caught:
        table.define("", request)
    assert caught.value.field == field
    assert table.world("", "vale") is before


def test_tenants_do_not_see_each_other() -> None:
    """The same world name is another world for another tenant."""
    table = worlds()
    table.define("a", world())
    with pytest.raises(NotFound):
        table.world("b", "vale")
    other, _ = table.define("b", world(lore="Other."))
    assert other.version == 1


def test_registering_again_keeps_the_lease_and_taking_over_ends_it() -> None:
    """A lease has one writer: a second game server must ask to take over."""
    table = worlds()
    table.define("", world())
    _, first, changed = table.register("", register(specs(3)))
    assert len(changed) == 3
    _, again, changed = table.register("", register(specs(3)))
    assert not changed
    assert [n.lease_epoch for n in again] == [n.lease_epoch for n in first]
    _, taken, changed = table.register("", register(specs(2), take_over=True))
    assert len(changed) == 2
    assert all(n.lease_epoch > first[0].lease_epoch for n in taken)
    assert table.npc("", "vale", "npc2").lease_epoch == first[2].lease_epoch


INLINE = npcs_pb2.Persona(name="Old Bo", text="Bo keeps the mill.")


@pytest.mark.parametrize(
    "other",
    [
        npcs_pb2.NpcSpec(npc_id="npc0", archetype_id="villager", persona_id="count"),
        npcs_pb2.NpcSpec(npc_id="npc0", archetype_id="vampire", persona_id="mira"),
        npcs_pb2.NpcSpec(npc_id="npc0", archetype_id="villager", persona=INLINE),
    ],
)
def test_another_persona_or_archetype_keeps_the_lease_unless_it_is_taken_over(other: npcs_pb2.NpcSpec) -> None:
    """Without take_over no lease ends. The NPC has its new persona from now on, and its game server goes on with it."""
    table = worlds()
    world_now, _ = table.define("", world())
    _, first, _ = table.register("", register(specs(2)))
    last = world_now.lease_last
    _, (npc,), changed = table.register("", register([other]))
    assert changed == [npc]
    assert npc.lease_epoch == first[0].lease_epoch and world_now.lease_last == last
    assert npc.number == first[0].number
    assert (npc.archetype_id, npc.spec) == (other.archetype_id, other.SerializeToString())
    assert npc.script != first[0].script
    assert not table.register("", register([other]))[2], "the same again changes nothing"
    _, (taken,), _ = table.register("", register([other], take_over=True))
    assert taken.lease_epoch > npc.lease_epoch


def test_a_spec_that_reads_the_same_is_another_one_all_the_same() -> None:
    """A persona of another id with the same words is the one that a later definition changes."""
    table = worlds()
    twin = npcs_pb2.Persona(persona_id="twin", name="Mira", text="Mira bakes bread at the mill.")
    table.define("", world(personas=[twin]))
    _, (first,), _ = table.register("", register(specs(1)))
    other = npcs_pb2.NpcSpec(npc_id="npc0", archetype_id="villager", persona_id="twin")
    _, (npc,), changed = table.register("", register([other]))
    assert changed == [npc] and npc.persona_id == "twin"
    assert (npc.lease_epoch, npc.script) == (first.lease_epoch, first.script)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (npcs_pb2.NpcSpec(npc_id="", archetype_id="villager", persona_id="mira"), "npcs[1].npc_id"),
        (npcs_pb2.NpcSpec(npc_id="npc0", archetype_id="villager", persona_id="mira"), "npcs[1].npc_id"),
        (npcs_pb2.NpcSpec(npc_id="x", archetype_id="dragon", persona_id="mira"), "npcs[1].archetype_id"),
        (npcs_pb2.NpcSpec(npc_id="x", archetype_id="villager", persona_id="nobody"), "npcs[1].persona_id"),
        (npcs_pb2.NpcSpec(npc_id="x", archetype_id="villager"), "npcs[1].persona.name"),
    ],
)
def test_bad_registrations_take_nobody_in(spec: npcs_pb2.NpcSpec, field: str) -> None:
    """All NPCs of a call are registered, or none."""
    table = worlds()
    table.define("", world())
    with pytest.raises(CallerError) as caught:
        table.register("", register([specs(1)[0], spec]))
    assert caught.value.field == field
    assert table.npcs == 0


def test_limits_are_kept() -> None:
    """The numbers of worlds and NPCs are bounded."""
    table = worlds(WorldLimits(worlds_max=1, npcs_max=3, npcs_per_call_max=2))
    table.define("", world())
    with pytest.raises(Overloaded):
        table.define("other", world())
    with pytest.raises(CallerError, match="must be 1 to 2"):
        table.register("", register(specs(3)))
    table.register("", register(specs(2)))
    with pytest.raises(Overloaded):
        table.register("", register(specs(4)[2:]))


def refused(many: list[Steps[Any]]) -> int:
    """Runs many changes at the same time, a step of each in turn. Returns the number of refused ones."""
    count = 0
    while many:
        for steps in list(many):
            try:
                next(steps)
            except Overloaded:
                count += 1
            except StopIteration:
                pass
            else:
                continue
            many.remove(steps)
    return count


def test_worlds_and_npcs_that_come_at_the_same_time_keep_to_their_limits() -> None:
    """Of twenty worlds as many are defined as there is room for, and of twenty registrations as many are accepted as
    fit."""
    table = worlds(WorldLimits(worlds_max=5, npcs_max=9))
    assert refused([table.defining("", world(world_id=f"w{n}")) for n in range(20)]) == 15
    assert len(table) == 5
    there = [w.world_id for w in table]
    requests = [npcs_pb2.RegisterRequest(world_id=there[n % 5], npcs=[spec]) for n, spec in enumerate(specs(20))]
    assert refused([table.registering("", request) for request in requests]) == 11
    assert table.npcs == 9


@pytest.mark.parametrize("gone", ["archetypes", "personas"])
def test_npcs_whose_archetype_or_persona_a_definition_leaves_out_are_told(gone: str) -> None:
    """They are counted, and the first five are named, as long as it is so."""
    table = worlds()
    first, _ = table.define("", world())
    table.register("", register(specs(16)))
    assert at_once(table.left_out(first)) == []
    less = world()
    del getattr(less, gone)[1]
    for lore in ("", "It rains."):
        less.lore += lore
        (said,) = at_once(table.left_out(table.define("", less)[0]))
        assert said.startswith(f"{gone}: 8 registered NPCs ") and "npc1, npc11, npc13, npc15, npc3 and 3 more" in said
    table.remove("", "vale", [f"npc{n}" for n in range(3, 16)])
    (said,) = at_once(table.left_out(table.world("", "vale")))
    assert said.startswith(f"{gone}: 1 registered NPC ") and "npc1;" in said
    assert at_once(table.left_out(table.define("", world())[0])) == []


def test_an_npc_that_cannot_be_taken_up_again_is_named_in_the_log() -> None:
    """Its world has changed since it was registered. The others are taken up."""
    less = world()
    del less.archetypes[1]
    kept = [(spec.SerializeToString(), 1) for spec in specs(2)]
    with capture_logs() as lines:
        revived = worlds().revive("", less.SerializeToString(), 1, 1, [*kept, (b"\xff", 1)])
    assert list(revived.npcs) == ["npc0"]
    lost = [line["npc"] for line in lines if line["event"] == "an NPC could not be taken up again"]
    assert lost == ["npc1", ""]


def test_a_changed_world_changes_the_trunks_of_its_npcs() -> None:
    """Lore is at the start of every trunk. Leases and numbers stay."""
    layout = Layout(SimVocab(list(MARKS.values())))
    table = Worlds([layout], WorldLimits(), load_policy())
    table.define("", world())
    _, before, _ = table.register("", register(specs(2)))
    table.define("", world(lore="Ravenmere is a village by the old road. Mayor Greta rules here. Now it rains frogs."))
    for old in before:
        new = table.npc("", "vale", old.key.npc)
        assert (new.lease_epoch, new.number) == (old.lease_epoch, old.number)
        longer, shorter = layout.trunk(new.script), layout.trunk(old.script)
        assert len(longer.tokens) == len(shorter.tokens) + 4
        assert longer.shared == shorter.shared + 4


def test_numbers_are_used_again() -> None:
    """Numbers are dense, so that cadence groups stay full."""
    table = worlds()
    table.define("", world())
    table.register("", register(specs(4)))
    removed, unknown = table.remove("", "vale", ["npc1", "ghost"])
    assert [n.number for n in removed] == [1] and unknown == ["ghost"]
    _, new, _ = table.register(
        "", register([npcs_pb2.NpcSpec(npc_id="new", archetype_id="villager", persona_id="mira")])
    )
    assert new[0].number == 1


def test_every_world_has_a_policy_that_always_answers() -> None:
    """The built-in one is cut to the world's words and ends with a default row."""
    table = worlds()
    made, _ = table.define("", world())
    last = made.policy[-1]
    assert (last.percept_kind, last.percept_stance, last.event, last.time_of_day) == ("", "", "", "")
    assert {r.action for r in made.policy} <= {"idle", "flee", "attack", "greet"}
