"""Conversations begin with the NPC's memories, and end as new ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import CallerError, NotFound
from core.script import Section, SectionKind
from core.words import Tier, TrunkKey
from daemon.config import Config
from memory.bond import Bond, Exchange, OpenSession
from memory.noting import PLAYER
from npcd.v1 import dialogue_pb2, npcs_pb2
from tests.daemon.rig import Rig, gated, quick, running, until

TOLD = ("I lost my green lantern at the old ferry.", "My sister is called Anna.")
FACTS = [f"{PLAYER} lost the green lantern at the old ferry.", f"{PLAYER}'s sister is Anna."]


def bond_of(rig: Rig, npc: str = "npc0", player: str = "p1") -> Bond:
    """The bond that an NPC has at hand of a player."""
    return rig.daemon.memory.at_hand(rig.daemon.worlds.npc("", "vale", npc).key, player) or Bond()


def told_in(rig: Rig, npc: str = "npc0", player: str = "p1") -> tuple[int, ...]:
    """The tokens of cards and facts in the conversation under way."""
    (session,) = rig.daemon.dialogue.hot.of_player("", "vale", player)
    return rig.daemon.dialogue.layout.lines(session.known)


def end(npc: str = "npc0", player: str = "p1") -> dialogue_pb2.EndSessionRequest:
    """Ends a conversation."""
    return dialogue_pb2.EndSessionRequest(world_id="vale", npc_id=npc, player_id=player)


async def tell(rig: Rig, npc: str = "npc0", player: str = "p1", lines: tuple[str, ...] = TOLD) -> None:
    """Says a player's lines, one after the other."""
    for line in lines:
        await rig.say(npc, line, player, max_tokens=3)


async def test_told_facts_are_in_the_next_conversation() -> None:
    """Facts by rule are on the card, with the player's name once it is known. No other NPC has them."""
    async with running(gated()) as rig:
        await tell(rig, lines=(*TOLD, "My name is Corvessa."))
        assert told_in(rig) == ()  # the turns themselves are there
        await rig.daemon.calls.end_session("", end())
        await until(lambda: bool(bond_of(rig).summaries), "the summary")
        bond = bond_of(rig)
        assert bond.session is None and bond.name == "Corvessa" and [f.text for f in bond.facts] == FACTS
        await tell(rig, lines=("Hello again.",))
        layout = rig.daemon.dialogue.layout
        said = " ".join(["Corvessa.", *(f.replace(PLAYER, "Corvessa") for f in FACTS)])
        assert told_in(rig) == layout.card(said).tokens
        await rig.say("npc1", "Hello", max_tokens=3)
        assert bond_of(rig, "npc1").facts == []
        asked = npcs_pb2.RecallRequest(world_id="vale", npc_id="npc0", player_id="p1")
        answer = await rig.daemon.calls.recalling.recall("", asked)
        assert answer.player_name == "Corvessa" and len(answer.facts) == 2 and len(answer.summaries) == 1


async def test_a_summary_that_is_not_borne_out_is_made_by_rule() -> None:
    """The simulated model gives no sensible text. A summary of the model with only facts that were said is kept."""
    async with running(gated()) as rig:
        await tell(rig)
        (session,) = rig.daemon.dialogue.hot.of_player("", "vale", "p1")
        await rig.daemon.calls.end_session("", end())
        sessions = rig.daemon.dialogue.sessions
        await until(lambda: bool(bond_of(rig).summaries), "the summary")
        assert sessions.counts.summaries_rule == 1
        assert bond_of(rig).summaries[0].text.startswith(f"{PLAYER} talked with Mira.")
        said = "Mira met a player of cards. The player lost a lantern at the ferry. He slew a dragon."
        sessions._remember(session, said)
        assert sessions.counts.summaries_model == 1
        assert bond_of(rig).summaries[1].text == "The player lost a lantern at the ferry."


async def test_long_conversations_keep_the_facts_of_turns_that_left() -> None:
    """At the rebuild, facts of turns that leave go onto the card."""
    async with running(gated()) as rig:
        await tell(rig, lines=(*TOLD, *(f"line {n}" for n in range(8))))
        (session,) = rig.daemon.dialogue.hot.of_player("", "vale", "p1")
        assert session.rebuilds == 1
        assert not any(
            "lantern" in t.text for t in session.turns if t.kind is SectionKind.PLAYER
        )  # an NPC may say anything
        layout = rig.daemon.dialogue.layout
        assert told_in(rig) == layout.card(" ".join(f.replace(PLAYER, "The player") for f in FACTS)).tokens


async def test_a_summary_has_a_trunk_of_its_own_and_leaves_none() -> None:
    """The next conversation begins on a trunk that no summary uses. After the summary its trunk is gone."""
    async with running(gated()) as rig:
        door, homes = rig.daemon.door, rig.daemon.step_backend.scheduler.placer.homes
        keys: list[TrunkKey] = []
        submit_group = door.submit_group

        def noting(group):  # type: ignore[no-untyped-def]
            keys.extend(work.key for work, _, _ in group if work.max_tokens and work.tier is Tier.BRONZE)
            return submit_group(group)

        door.submit_group = noting  # type: ignore[method-assign]
        await tell(rig)
        await rig.daemon.calls.end_session("", end())
        await until(lambda: bool(bond_of(rig).summaries), "the summary")
        (key,) = keys
        assert key.fork and key.origin.partner == "p1"
        await until(lambda: not homes.forks, "the summary's trunk to go")


async def test_a_player_can_be_forgotten_while_a_conversation_is_summed_up(tmp_path: Path) -> None:
    """That holds for sessions, bonds, summaries under way and save files. Another player's memories stay."""
    model = gated()
    async with running(model, saves=tmp_path) as rig:
        calls = rig.daemon.calls
        await tell(rig)
        await tell(rig, player="p2")
        mark = npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id="one")
        await calls.save_games.checkpoint("", mark)
        model.engine.gated = True
        await rig.daemon.calls.end_session("", end())
        answer = await calls.forgetting.forget("", npcs_pb2.ForgetRequest(world_id="vale", player_id="p1"))
        assert answer.stores == ["hot", "saves"]
        model.engine.open()
        await rig.daemon.door.all_ended()
        assert bond_of(rig).empty and not bond_of(rig, player="p2").empty
        await calls.save_games.restore("", npcs_pb2.RestoreRequest(world_id="vale", checkpoint_id="one"))
        assert bond_of(rig).empty and bond_of(rig, player="p2").facts


async def test_an_npc_that_is_removed_keeps_its_memories() -> None:
    """They are summed up by rule, since the NPC is gone."""
    async with running(gated()) as rig:
        await tell(rig)
        key = rig.daemon.worlds.npc("", "vale", "npc0").key
        await rig.daemon.calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=["npc0"]))
        bond = rig.daemon.memory.at_hand(key, "p1")
        assert bond is not None and bond.session is None and bond.summaries and len(bond.facts) == 2


@pytest.mark.parametrize(("silent_s", "goes_on"), [(60, True), (3_600, False)])
async def test_a_conversation_of_an_earlier_life_goes_on_while_it_is_young(silent_s: int, goes_on: bool) -> None:
    """Its turns are there, and a retry is answered from them. An old conversation is summed up and a new one begins."""
    async with running(gated()) as rig:
        memory, npc = rig.daemon.memory, rig.daemon.worlds.npc("", "vale", "npc0")
        kept = OpenSession("earlier-1", memory.wall_ms() - silent_s * 1000, [Exchange("t1", TOLD[0], "Oh.")], 1)
        memory.bonds.put(npc.key, "p1", Bond(session=kept), complete=True)
        events = await rig.say("npc0", "Hello?", turn_id="t2", max_tokens=3)
        assert (events[-1].session_id == "earlier-1") is goes_on
        (session,) = rig.daemon.dialogue.hot.of_player("", "vale", "p1")
        assert [t.text for t in session.turns if t.kind is SectionKind.PLAYER] == ([TOLD[0]] if goes_on else []) + [
            "Hello?"
        ]
        again = await rig.say("npc0", TOLD[0], turn_id="t1", max_tokens=3)
        assert (again[-1].finish == dialogue_pb2.TALK_FINISH_REPEATED) is goes_on
        assert bool(bond_of(rig).summaries) is not goes_on


async def test_cards_stand_in_the_trunk_and_in_every_tail() -> None:
    """The card has the game's trust and quests. A wrong card is refused by its field and changes nothing."""
    async with running(gated(), quick(Config())) as rig:
        calls = rig.daemon.calls
        request = npcs_pb2.SetCardsRequest(world_id="vale", npc_id="npc0", player_id="p1")
        with pytest.raises(CallerError, match="give relationship"):
            await calls.recalling.set_cards("", request)
        request.relationship.trust = 2.0
        with pytest.raises(CallerError, match=r"relationship\.trust: is 2"):
            await calls.recalling.set_cards("", request)
        assert bond_of(rig).empty
        request.relationship.trust = 0.9
        request.quest.active.append("Find the lantern.")
        answer = await calls.recalling.set_cards("", request)
        assert not answer.accepted and not answer.accepted_known  # a daemon that keeps nothing
        layout = rig.daemon.dialogue.layout
        key = rig.daemon.worlds.npc("", "vale", "npc0").key
        told = "The player, a trusted friend. Find the lantern."
        assert rig.daemon.dialogue.sessions.digest(key, "p1") == told
        assert rig.daemon.dialogue.sessions.digest(key, "p2") == ""
        digest = layout.encode([Section(SectionKind.DIGEST, told)])
        await tell(rig, lines=("Hello.",))
        assert told_in(rig) == layout.card("The player is a trusted friend. Find the lantern.").tokens
        # An NPC that sees the player has the digest in its intent's tail, as far as it fits.
        tails: list[tuple[int, ...]] = []
        door = rig.daemon.door
        submit = door.submit_group

        def heard(group):  # type: ignore[no-untyped-def]
            tails.extend(tuple(work.tail.tolist()) for work, _, _ in group)
            return submit(group)

        door.submit_group = heard  # type: ignore[method-assign]
        await rig.daemon.calls.observe("", rig.frame(rig.sees("npc0", ("p1", "player", "friendly", 3.0))))
        await until(lambda: any(t[: len(digest)] == digest for t in tails), "the digest")


async def test_a_save_knows_what_it_knew_and_no_more(tmp_path: Path) -> None:
    """After save, talk and restore the talk is gone. After export and import elsewhere the save's memories, worlds and
    NPCs are there.
    """
    async with running(gated(), saves=tmp_path / "a") as rig:
        calls = rig.daemon.calls.save_games
        await tell(rig, lines=TOLD[:1])
        await calls.checkpoint("", npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id="10:00"))
        await tell(rig, lines=TOLD[1:])
        await tell(rig, "npc1", lines=TOLD)
        back = await calls.restore("", npcs_pb2.RestoreRequest(world_id="vale", checkpoint_id="10:00"))
        assert back.timeline_id not in ("", "first")
        assert [f.text for f in bond_of(rig).facts] == FACTS[:1] and bond_of(rig, "npc1").empty
        events = await rig.say("npc0", "And now?", max_tokens=3)
        (session,) = rig.daemon.dialogue.hot.of_player("", "vale", "p1")
        assert [t.text for t in session.turns if t.kind is SectionKind.PLAYER] == [TOLD[0], "And now?"] and events[
            -1
        ].session_id
        with pytest.raises(NotFound, match="no checkpoint 'never'"):
            await calls.restore("", npcs_pb2.RestoreRequest(world_id="vale", checkpoint_id="never"))
        request = npcs_pb2.ExportRequest(world_id="vale")
        chunks = [c async for c in calls.export("", request)]
    async with running(gated(), saves=tmp_path / "b", npcs=1) as rig:
        calls = rig.daemon.calls.save_games

        async def sent(broken: bytes = b"") -> object:
            for c in chunks:
                yield npcs_pb2.ImportChunk(
                    world_id="vale", sequence=c.sequence, content=c.content + broken, last=c.last,
                    content_hash=c.content_hash,
                )  # fmt: skip

        with pytest.raises(CallerError, match="content_hash"):
            await calls.import_("", sent(b"x"))  # type: ignore[arg-type]
        answer = await calls.import_("", sent())  # type: ignore[arg-type]
        assert answer.npcs == 4 and answer.bytes == sum(len(c.content) for c in chunks)
        assert len(rig.daemon.worlds.world("", "vale").npcs) == 4
        assert [f.text for f in bond_of(rig).facts] == FACTS[:1]
        await tell(rig, lines=("Hello.",))


async def test_a_faulty_import_is_refused_with_its_reason(tmp_path: Path) -> None:
    """A wrong order, a missing end, another world, and bytes that are no save are refused, and nothing changes."""
    async with running(gated(), saves=tmp_path) as rig:
        calls = rig.daemon.calls.save_games

        async def failing(*chunks: npcs_pb2.ImportChunk) -> str:
            async def sent() -> object:
                for c in chunks:
                    yield c

            with pytest.raises(CallerError) as failed:
                await calls.import_("", sent())  # type: ignore[arg-type]
            return str(failed.value)

        chunk = npcs_pb2.ImportChunk
        assert "world_id: is empty" in await failing(chunk(last=True))
        assert "sequence: is 3" in await failing(chunk(world_id="vale", sequence=3))
        assert "ended before the last" in await failing(chunk(world_id="vale", content=b"x"))
        assert "it is empty or cut off" in await failing(chunk(world_id="vale", content=b"x", last=True))
        data = b"".join([c.content async for c in calls.export("", npcs_pb2.ExportRequest(world_id="vale"))])
        assert "of world 'vale'" in await failing(chunk(world_id="elsewhere", content=data, last=True))
        assert "not those that were saved" in await failing(
            chunk(world_id="vale", content=data.replace(b"vale", b"vane"), last=True)
        )
        assert "cut off" in await failing(chunk(world_id="vale", content=data[:-90], last=True))


async def test_a_conversation_at_its_limit_is_summed_up_once() -> None:
    """The next line begins another conversation, which has the memories of the first."""
    config = Config()
    async with running(gated(), replace(config, hot=replace(config.hot, session_turns_max=4))) as rig:
        await tell(rig, lines=(*TOLD, "Hello again."))
        await until(lambda: bool(bond_of(rig).summaries) and not rig.daemon.door.open, "the summary")
        assert len(bond_of(rig).summaries) == 1 and rig.daemon.dialogue.sessions.counts.begun == 2
        assert told_in(rig) != ()
