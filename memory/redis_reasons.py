"""Reasons why a Redis cannot be npcd's recent store, with a fix: from its INFO, or from its refusal. Each reason is
"problem; fix". Decides only.
"""

from __future__ import annotations

from collections.abc import Mapping

VERSION_MIN = (6, 2)  # SET with PXAT
CLUSTER = "is part of a Redis Cluster, which npcd does not use; give the address of a Redis without cluster-enabled"
SENTINEL = "is a Redis Sentinel; give the address of the Redis that it watches, not of the Sentinel"
REPLICA = "is a replica, which only reads; give the address of its primary"
# A part of an error's text, and the reason.
REFUSALS = (
    ("authentication required", "wants a password; put it into the URL, as redis://:PASSWORD@HOST:PORT, or its file "
                                "into memory.recent.password_file"),
    ("noauth", "wants a password; put it into the URL, as redis://:PASSWORD@HOST:PORT, or its file into "
               "memory.recent.password_file"),
    ("without any password configured", "has no password, and npcd was given one; leave it out of the URL"),
    ("username-password", "refuses the user or the password; check both in the URL (%40 for @, %2F for /) and in "
                          "memory.recent.password_file"),
    ("invalid password", "refuses the password; check it in the URL and in memory.recent.password_file"),
    ("read only replica", REPLICA),
    ("crossslot", CLUSTER),
    ("hash slot", CLUSTER),
    ("clusterdown", CLUSTER),
    ("wrong_version_number", "does not speak TLS at that port; give redis:// instead of rediss://, or its TLS port"),
    ("wrong version number", "does not speak TLS at that port; give redis:// instead of rediss://, or its TLS port"),
    ("unknown command", "does not know a command that npcd needs; give the address of a Redis 6.2 or newer (and no "
                        "Sentinel) in which it is neither renamed nor switched off"),
    ("protocol error", "answers as no Redis does; check the address"),
)  # fmt: skip
# By the class of redis-py's error, whose text is only "3621 10.0.0.1:6379" for example.
CLASSES = {
    "MovedError": CLUSTER, "AskError": CLUSTER, "ClusterDownError": CLUSTER, "ClusterCrossSlotError": CLUSTER,
    "TryAgainError": CLUSTER, "ReadOnlyError": REPLICA,
}  # fmt: skip


def refusal(kind: str, text: str) -> str:
    """The reason of an error, by its class's name and its text; empty when the text says it well enough."""
    lower = text.lower()
    return CLASSES.get(kind) or next((reason for part, reason in REFUSALS if part in lower), "")


def unfit(info: Mapping[str, str]) -> str:
    """The reason why a server with this INFO cannot be used; empty when it can, or does not say."""
    mode = info.get("redis_mode", "")
    if mode in ("cluster", "sentinel"):
        return CLUSTER if mode == "cluster" else SENTINEL
    if info.get("role") == "slave" and info.get("slave_read_only", "1") == "1":
        return REPLICA
    version = info.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if len(numbers) == 2 and numbers < VERSION_MIN:
        return f"is Redis {version}, and npcd wants 6.2 or newer; update it, or leave the URL out for npcd's own"
    return ""
