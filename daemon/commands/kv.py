"""`npcd kv`: the place of each trunk's KV in a running daemon, for one world. Gives lines to print."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError, StoreFailed
from core.files import named_path

if TYPE_CHECKING:
    from npcd.v1 import npcs_pb2

ANSWER_S = 10.0
MIB = 1 << 20
HOMES = ("sequence", "ram", "redis", "none")
PORT_MAX = 65_535

# An IPv6 address stands in brackets: its colons are not the port's.
_HOST_PORT = re.compile(r"(?:(?:dns|ipv4|ipv6):(?://[^/\s]*/)?)?(?:\[[^\]\s]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command and its arguments."""
    kv = commands.add_parser("kv", help="print the place and the use of each trunk's KV in a running daemon")
    kv.add_argument("world", metavar="WORLD")
    kv.add_argument("npcs", metavar="NPC", nargs="*", help="only these NPCs")
    kv.add_argument(
        "--target", metavar="ADDRESS", default="127.0.0.1:50061", help="host:port or unix:/path (%(default)s)"
    )
    kv.add_argument(
        "--token-file", type=named_path, metavar="FILE", help="a file with the game server's token in its first line"
    )
    kv.add_argument("--ca", type=named_path, metavar="FILE.pem", help="use TLS, and trust this CA")
    kv.add_argument(
        "--cert", type=named_path, metavar="FILE.pem", help="a client's certificate, with --key and --ca (mTLS)"
    )
    kv.add_argument("--key", type=named_path, metavar="FILE.pem", help="the certificate's key")
    kv.add_argument("--json", action="store_true", help="print JSON, a trunk a line")


def run(args: argparse.Namespace) -> Iterator[str]:
    """Asks the daemon. Returns lines to print. Raises ConfigError and StoreFailed."""
    import grpc

    from npcd.v1 import npcs_pb2, npcs_pb2_grpc

    _check_target(args.target)
    request = npcs_pb2.DescribeRequest(world_id=args.world, npc_ids=args.npcs)
    token: tuple[tuple[str, str | bytes], ...] = ()
    if args.token_file:
        token = (("authorization", f"Bearer {_token(args.token_file)}"),)
    cert, key = getattr(args, "cert", None), getattr(args, "key", None)
    if bool(cert) != bool(key) or (cert and not args.ca):
        raise ConfigError("--cert, --key and --ca belong together; give all of them, or --ca alone")
    if args.ca:
        pair = (_read(key, "--key").encode(), _read(cert, "--cert").encode()) if cert and key else (None, None)
        trusted = grpc.ssl_channel_credentials(_read(args.ca, "--ca").encode(), *pair)
        channel = grpc.secure_channel(args.target, trusted, _direct(args.target))
    else:
        channel = grpc.insecure_channel(args.target, _direct(args.target))
    with channel:
        try:
            answer = npcs_pb2_grpc.NpcsStub(channel).Describe(request, timeout=ANSWER_S, metadata=token)
        except grpc.RpcError as error:
            raise StoreFailed(f"{args.target}: {error.details()}") from None
    yield from as_json(answer.npcs) if args.json else as_text(answer.npcs)
    if answer.unknown_npc_ids:
        yield f"not in this world: {', '.join(answer.unknown_npc_ids)}"


def as_text(npcs: Iterable[npcs_pb2.NpcDescription]) -> Iterator[str]:
    """A trunk a line, as a table, and the sum."""
    yield f"{'npc':<24} {'towards':<16} {'engine':<8} {'home':<8} {'tokens':>6} {'KiB':>8} {'hits':>6} {'unused s':>9}"
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for npc in npcs:
        for t in npc.trunks:
            count[t.home] += 1
            size[t.home] += t.bytes
            yield (
                f"{npc.npc_id:<24} {t.partner or '(intents)':<16} {t.engine:<8} {t.home:<8} {t.tokens:>6} "
                f"{t.bytes / 1024:>8.0f} {t.hits:>6} {t.idle_ms / 1000:>9.1f}"
            )
    parts = [f"{count[home]} {home} ({size[home] / MIB:.1f} MiB)" for home in HOMES if count[home]]
    yield f"{sum(count.values())} trunks: {', '.join(parts) or 'none'}"


def as_json(npcs: Iterable[npcs_pb2.NpcDescription]) -> Iterator[str]:
    """A trunk a line, for programs."""
    for npc in npcs:
        for t in npc.trunks:
            yield json.dumps(
                {
                    "npc": npc.npc_id, "partner": t.partner, "engine": t.engine, "home": t.home, "tokens": t.tokens,
                    "bytes": t.bytes, "hits": t.hits, "idle_ms": t.idle_ms,
                }
            )  # fmt: skip


def _check_target(target: str) -> None:
    """Raises ConfigError for an address that gRPC would take for another one: it reads port 99999 as port 34463, and
    takes every decimal digit of Unicode.
    """
    found = _HOST_PORT.fullmatch(target)
    is_tcp = found is not None and 1 <= int(found["port"]) <= PORT_MAX
    is_socket = target.startswith("unix:") and target != "unix:" and target.isprintable()
    if not (is_tcp or is_socket):
        raise ConfigError(f"--target: '{target}' must be host:port or unix:/path")


def _token(path: Path) -> str:
    """The first line of the file. Raises ConfigError if a request's metadata cannot carry it; never shows it."""
    lines = _read(path, "--token-file").splitlines()
    token = lines[0].strip() if lines else ""
    if not token or not all(" " <= letter <= "~" for letter in token):
        raise ConfigError(f"--token-file: the first line of {path} must be a token of printable ASCII letters")
    return token


def _direct(target: str) -> list[tuple[str, int]]:
    """Options for the channel: to this machine it goes past the environment's proxy."""
    from daemon.config import is_loopback

    host = target.rpartition(":")[0].strip("[]")
    return [("grpc.enable_http_proxy", 0)] if target.startswith("unix:") or is_loopback(host) else []


def _read(path: Path, flag: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag}: cannot read {path} ({error})") from error
