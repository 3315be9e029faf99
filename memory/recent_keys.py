"""The keys of the recent store, and the changes that a batch of records makes in them. Plain values: no connection.

<w> is <tenant>:<world>. Ids are written with % as %25 and : as %3A, so that no two keys are one.

    npcd:1:bond:<w>:<npc>:<player>  JSON of memory.bond.to_json(), but for the cards; expires RECENT_MS after the bond's
                                    last moment (an older npcd wrote cards into it as well: cards: goes before them)
    npcd:1:cards:<w>:<npc>:<player> JSON of the cards; expires RECENT_MS after it is seen that the NPC is not registered
    npcd:1:bonds:<w>                sorted set of <player>:<npc>, every score 0: in byte order, a player's side by side
    npcd:1:worlds                   set of <w>
    npcd:1:world:<w>                hash: definition, version (JSON), lease_last (never goes back), timeline
    npcd:1:npcs:<w>                 hash: npc id -> JSON of [spec, lease_epoch]
    npcd:1:at:<journal>             the journal's position: all before it is in here, nothing after it
    npcd:1:rewrite:<journal>        a player was forgotten at this position, and the server's file still has the text

The 1 is the layout's version: another layout has other keys, and is filled from the journal anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from core.errors import StoreFailed
from core.words import NpcKey
from memory.bond import RECENT_MS, Bond, apply, cards_of, from_json, to_json, without_cards
from memory.records import START, Kind, Position, Record

OF_A_BOND = frozenset({Kind.TURN, Kind.ENDED, Kind.SUMMARY, Kind.CARD})
NPCS_AT_ONCE = 32  # in one command
FIRST, LAST = b"-", b"+"  # bounds of an index

Pair = tuple[NpcKey, str]
WorldId = tuple[str, str]
Command = tuple[str | bytes | int, ...]
Load = Callable[[str], Mapping[tuple[str, str], Bond]]


@dataclass(slots=True)
class Found:
    """Values in the store before a batch: all bonds that it folds into, entries of indexes that it may drop, and the
    last lease of each world that it defines or registers NPCs in.
    """

    at: Position
    bonds: dict[Pair, Bond] = field(default_factory=dict)
    indexed: dict[Pair, None] = field(default_factory=dict)
    leases: dict[WorldId, int] = field(default_factory=dict)


@dataclass(slots=True)
class Changes:
    """Values to write: bonds by when they were touched last, and commands about worlds and NPCs.

    Bonds that are `settled` do not depend on the store: this batch drops them first.
    """

    bonds: dict[Pair, Bond]
    touched_ms: dict[Pair, int] = field(default_factory=dict)
    settled: set[Pair] = field(default_factory=set)
    registry: list[Command] = field(default_factory=list)

    def settle(self, pair: Pair, bond: Bond, at_ms: int) -> None:
        """This is the bond now, whatever it was."""
        self.bonds[pair] = bond
        self.touched_ms[pair] = at_ms
        self.settled.add(pair)

    def kept(self, settled: bool) -> Iterator[Command]:
        """The commands that write the bonds; one that is empty is taken out."""
        for pair, at_ms in self.touched_ms.items():
            if (pair in self.settled) != settled:
                continue
            npc, player = pair
            index = key_of("bonds", npc.tenant, npc.world)
            entry = _joined(player, npc.npc)
            whole = self.bonds[pair]
            bond, cards = without_cards(whole), cards_of(whole)
            if bond.empty:
                yield ("DEL", bond_key(npc, player))
            else:
                yield ("SET", bond_key(npc, player), _said(bond), "PXAT", max(1, (bond.last_ms or at_ms) + RECENT_MS))
            if cards.empty:
                yield ("DEL", cards_key(npc, player))
            else:
                yield ("SET", cards_key(npc, player), _said(cards))
            if whole.empty:
                yield ("ZREM", index, entry)
            else:
                yield ("ZADD", index, 0, entry)


def changes(records: Iterable[Record], found: Found, load: Load) -> Changes:
    """Folds records, in their order, into the found values. `load` gives the bonds of a save's file, for us to change;
    its exceptions pass through.
    """
    out = Changes(found.bonds)
    for record in records:
        world = (record.tenant, record.world)
        if record.kind in OF_A_BOND:
            pair = (record.key, record.player)
            apply(out.bonds[pair], record)
            out.touched_ms[pair] = record.at_ms
        elif record.kind is Kind.FORGET:
            for pair in [*out.bonds, *found.indexed]:
                if pair[0][:2] == world and pair[1] == record.player and record.npc in ("", pair[0].npc):
                    out.settle(pair, Bond(), record.at_ms)
            if record.npc:  # also if the index does not know it
                out.settle((record.key, record.player), Bond(), record.at_ms)
        elif record.kind is Kind.RESTORED:
            for pair in [*out.bonds, *found.indexed]:
                if pair[0][:2] == world:
                    out.settle(pair, Bond(), record.at_ms)
            for (npc, player), bond in load(record.body["file"]).items():
                out.settle((NpcKey(*world, npc), player), bond, record.at_ms)
            out.registry.append(("HSET", key_of("world", *world), "timeline", record.timeline))
        elif record.kind is Kind.DELETED:
            for pair in [*out.bonds, *found.indexed]:
                if pair[0][:2] == world:
                    out.settle(pair, Bond(), record.at_ms)
            found.leases[world] = 0
            out.registry.append(("SREM", key_of("worlds"), _joined(*world)))
            out.registry.append(("DEL", key_of("world", *world), key_of("npcs", *world)))
        elif record.kind is Kind.WORLD:
            lease = found.leases[world] = max(found.leases[world], record.body.get("lease_last", 0))
            version = json.dumps(record.body.get("version", 0))
            fields = ("version", version, "lease_last", str(lease))
            said = record.body.get("definition", "")
            out.registry.append(("HSET", key_of("world", *world), "definition", said, *fields))
            out.registry.append(("SADD", key_of("worlds"), _joined(*world)))
        elif record.kind is Kind.NPCS:
            npcs = record.body["npcs"]
            for i in range(0, len(npcs), NPCS_AT_ONCE):
                part: list[str | bytes] = []
                for npc_id, spec, epoch in npcs[i : i + NPCS_AT_ONCE]:
                    part += (bytes_of(npc_id), json.dumps([spec, epoch]))
                out.registry.append(("HSET", key_of("npcs", *world), *part))
            lease = found.leases[world] = max([found.leases[world], *(epoch for _, _, epoch in npcs)])
            out.registry.append(("HSET", key_of("world", *world), "lease_last", str(lease)))
        elif record.kind is Kind.REMOVED and record.body["npcs"]:
            out.registry.append(("HDEL", key_of("npcs", *world), *map(bytes_of, record.body["npcs"])))
    return out


def key_of(what: str, *ids: str) -> bytes:
    """The key of something: see the table above."""
    return _joined("npcd", "1", what, *ids)


def bond_key(npc: NpcKey, player: str) -> bytes:
    """The key of a bond."""
    return key_of("bond", *npc, player)


def cards_key(npc: NpcKey, player: str) -> bytes:
    """The key of a bond's cards."""
    return key_of("cards", *npc, player)


def bytes_of(text: str) -> bytes:
    """Any text as it stands in the store; text_of() takes it back."""
    return text.encode("utf-8", "surrogatepass")


def text_of(said: bytes) -> str:
    """The text of bytes_of()."""
    return said.decode("utf-8", "surrogatepass")


def index_slice(world: WorldId, after: bytes, until: bytes, count: int) -> Command:
    """The command that reads a world's index, in its order, from FIRST or b"(" + an entry on."""
    return ("ZRANGEBYLEX", key_of("bonds", *world), after, until, "LIMIT", 0, count)


def bounds_of(player: str) -> tuple[bytes, bytes]:
    """Between which bounds of index_slice() a player's entries are."""
    player = _escaped(player)
    return bytes_of(f"[{player}:"), bytes_of(f"({player};")  # ; comes after :


def pair_of(world: WorldId, entry: bytes) -> Pair:
    """The NPC and player of an entry of a world's index."""
    player, npc = ids_of(entry)
    return NpcKey(*world, npc), player


def ids_of(entry: bytes) -> list[str]:
    """The ids in an entry of an index, or of the set of worlds."""
    return [part.replace("%3A", ":").replace("%25", "%") for part in text_of(entry).split(":")]


def bond_of(said: bytes | None, cards: bytes | None) -> tuple[Bond, int]:
    """The bond of what stands under its two keys, and how many of these were none of ours: they count as nothing."""
    bond, broken = Bond(), 0
    if said is not None:
        try:
            bond = from_json(json.loads(said))
        except ValueError:
            broken += 1
    if cards is not None:
        try:
            kept = from_json(json.loads(cards))
        except ValueError:
            broken += 1
        else:
            bond.relationship, bond.quest = kept.relationship, kept.quest
    return bond, broken


def position_of(said: bytes | None) -> Position:
    """The journal's position as the store has it, START when it has none. Raises StoreFailed when it is no position."""
    try:
        return Position.parse(said.decode()) if said else START
    except ValueError as error:
        raise StoreFailed(f"its journal position is not a position: {error}") from error


def _said(bond: Bond) -> bytes:
    return bytes_of(json.dumps(to_json(bond), ensure_ascii=False, separators=(",", ":")))


def _joined(*ids: str) -> bytes:
    return bytes_of(":".join(map(_escaped, ids)))


def _escaped(id_: str) -> str:
    return id_.replace("%", "%25").replace(":", "%3A")
