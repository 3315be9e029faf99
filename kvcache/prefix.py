"""Shared beginnings (world + archetype), each computed once in a sequence of its own and copied from there."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from core.choice import Tokens, common_len


def token_hash(tokens: Tokens) -> bytes:
    """A 16-byte name of a token sequence."""
    return blake2b(tokens.tobytes(), digest_size=16).digest()


@dataclass(slots=True, eq=False)
class Prefix:
    """`held` of `tokens` are in sequence `seq`; `users` works wait for it or copy from it."""

    name: bytes
    tokens: Tokens
    seq: int
    held: int = 0
    users: int = 0
    used_ns: int = 0
    adapter: str = ""

    @property
    def ready(self) -> bool:
        """True when all of it is computed."""
        return self.held == len(self.tokens)


class Prefixes:
    """At most `count` prefixes, in sequences first .. first + count - 1; the one that is unused longest is evicted.

    Invariant: one prefix per sequence, free + held == count.
    """

    def __init__(self, first: int, count: int) -> None:
        self._free = list(range(first + count - 1, first - 1, -1))
        self._by_name: dict[bytes, Prefix] = {}

    def take(self, tokens: Tokens, now_ns: int, adapter: str = "") -> tuple[Prefix, Prefix | None] | None:
        """The prefix for these tokens, computed with that adapter, with one more user, and the one that was evicted for
        it (empty its sequence).

        None when every sequence is in use by others.
        """
        name = token_hash(tokens) + adapter.encode()
        prefix = self._by_name.get(name)
        gone = None
        if prefix is None:
            if not self._free:
                unused = [p for p in self._by_name.values() if not p.users]
                if not unused:
                    return None
                gone = min(unused, key=lambda p: p.used_ns)
                self._free.append(gone.seq)
                del self._by_name[gone.name]
            prefix = self._by_name[name] = Prefix(name, tokens, self._free.pop(), adapter=adapter)
        prefix.users += 1
        prefix.used_ns = now_ns
        return prefix, gone

    def furthest(self, prefix: Prefix) -> tuple[Prefix | None, int]:
        """The prefix that holds most of the tokens that this one begins with, and how many; None: no other one holds
        more of them than it does itself. Archetypes of one world begin alike.
        """
        best, best_len = None, prefix.held
        for other in self._by_name.values():
            if other is prefix or other.held <= best_len or other.adapter != prefix.adapter:
                continue
            alike = common_len(other.tokens[: other.held], prefix.tokens)
            if alike > best_len:
                best, best_len = other, alike
        return best, best_len

    def give_back(self, prefix: Prefix) -> None:
        """One user less; the prefix stays."""
        assert prefix.users > 0, "a prefix was given back twice"
        prefix.users -= 1

    def forget_all(self) -> None:
        """The engine was rebuilt: every sequence is empty. Users stay, what was computed is gone."""
        for prefix in self._by_name.values():
            prefix.held = 0
