"""Records as conversations make them, for tests of memories."""

from random import Random

from memory.records import Body, Kind, Record

NPC = ("t", "vale", "mira")


def turn(at_ms: int, line: str, reply: str, session: str = "s", player: str = "p", **more: object) -> Record:
    """An exchange of a player with NPC."""
    body: Body = {"session": session, "line": line, "reply": reply, **more}
    return Record(Kind.TURN, at_ms, *NPC, player, "first", body)


def record_of(rng: Random, at_ms: int, npc: tuple[str, str, str] = NPC, player: str = "p") -> Record:
    """Any record about an NPC and a player."""
    kind = rng.choice((Kind.TURN, Kind.TURN, Kind.TURN, Kind.ENDED, Kind.SUMMARY, Kind.CARD))
    session = f"s{rng.randrange(3)}"
    facts = [[f"fact {rng.randrange(40)}", rng.randrange(11) / 10] for _ in range(rng.randrange(3))]
    body: Body = {"session": session}
    if kind is Kind.TURN:
        body |= {"line": f"line {rng.random()}", "reply": "so?", "turn_id": f"t{rng.randrange(99)}", "facts": facts}
        body |= {"emotion": rng.choice(("calm", "afraid", "")), "name": rng.choice(("", "Ann"))}
    elif kind is Kind.SUMMARY:
        body |= {"text": f"summary {rng.random()}", "facts": facts, "by": "rule"}
    elif kind is Kind.CARD:
        card = {"trust": rng.uniform(-1, 1), "affinity": 0.0, "promises": ["x"], "betrayals": []}
        body = rng.choice(({"relationship": card}, {"quest": {"active": ["q"], "milestones": []}}, {"quest": None}))
    return Record(kind, at_ms, *npc, player, "first", body)
