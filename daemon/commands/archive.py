"""`npcd migrate` and `npcd archive`: commands for the owner of the PostgreSQL database. Gives lines to print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigError
from core.files import from_home, named_path
from daemon.process.datafolder import OWNER_URL

if TYPE_CHECKING:
    from memory.archive_admin import Event

COMMANDS = ("migrate", "archive")
MARGIN = " " * 32  # below the time and the kind of an event


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands and their arguments."""
    migrate = commands.add_parser(
        "migrate", help="create or update the archive's tables; run it again every few months, for new partitions"
    )
    migrate.add_argument(
        "--serving-role",
        metavar="NAME",
        default="npcd_serving",
        help="the role that npcd serve connects as; made if missing",
    )
    migrate.add_argument(
        "--serving-password-file",
        type=named_path,
        metavar="FILE",
        help="set that role's password from this file; none if left out",
    )
    migrate.add_argument(
        "--months", type=int, metavar="N", default=24, help="months ahead that get partitions (%(default)s)"
    )
    archive = commands.add_parser("archive", help="print events of the archive, or delete some")
    acts = archive.add_subparsers(dest="act", required=True)
    show = acts.add_parser("show", help="print an NPC's events, in order")
    show.add_argument("npc", metavar="NPC")
    show.add_argument("--limit", type=int, metavar="N", default=100, help="the newest N events (%(default)s)")
    show.add_argument("--json", action="store_true", help="print JSON, an event a line")
    forget = acts.add_parser("forget", help="delete a player's events here; a game's own Forget reaches every store")
    forget.add_argument("player", metavar="PLAYER", help="the pseudonym that show prints: 16 hex digits")
    forget.add_argument("--npc", metavar="NPC", default="", help="only events with this NPC")
    compact = acts.add_parser("compact", help="delete old months for good")
    compact.add_argument(
        "--keep-months", type=int, metavar="N", required=True, help="months to keep, before the present one"
    )
    for command in (migrate, show, forget, compact):
        command.add_argument(
            "--postgres", metavar="URL",
            help="URL of the database's owner (password from PGPASSWORD or ~/.pgpass); npcd's own if left out",
        )  # fmt: skip
        command.add_argument(
            "--data",
            type=named_path,
            metavar="FOLDER",
            help="the data folder of a running npcd with a PostgreSQL of its own",
        )
    show.add_argument("--world", metavar="WORLD", help="only in this world")
    forget.add_argument("--world", metavar="WORLD", required=True)
    show.add_argument("--tenant", metavar="TENANT", help="only of this tenant")
    forget.add_argument("--tenant", metavar="TENANT", default="")


def run(args: argparse.Namespace) -> Iterator[str]:
    """Runs the command. Returns lines to print. Raises ConfigError and StoreFailed."""
    from memory import archive_admin as admin

    args.postgres = args.postgres or _own_url(args.data)
    if args.command == "migrate":
        password = _password(args.serving_password_file)
        done = admin.migrate(args.postgres, args.months, args.serving_role, password)
        yield from done or ["nothing to do"]
    elif args.act == "show":
        events = admin.show(args.postgres, args.npc, args.world, args.tenant, args.limit)
        yield from (as_json(event) for event in events) if args.json else as_text(events, args.npc)
    elif args.act == "forget":
        deleted = admin.forget(args.postgres, args.tenant, args.world, args.player, args.npc)
        yield f"{deleted} events deleted" if deleted else _nothing_of(args)
    else:
        yield from admin.compact(args.postgres, args.keep_months) or ["no month is that old"]


def _own_url(data: Path | None) -> str:
    """The owner's URL of the PostgreSQL that a running npcd has in its data folder."""
    if data is None:
        from daemon.config import Config

        data = Config().memory.folder
    try:
        return (
            from_home(data, "--data", "give the data folder of a running npcd with --data, or a URL with --postgres")
            / OWNER_URL
        ).read_text("utf-8")
    except OSError:
        raise ConfigError(
            f"--postgres: give a URL, or with --data the folder of a running npcd that has its own; {data} has none"
        ) from None


def _nothing_of(args: argparse.Namespace) -> str:
    """A forget that found nothing."""
    with_npc = f" with {args.npc}" if args.npc else ""
    return _plain(
        f"nothing deleted: no events of {args.player}{with_npc} in {args.world}; npcd archive show NPC prints each "
        "player's pseudonym"
    )


def as_json(event: Event) -> str:
    """An event for programs."""
    from memory.records import Kind

    kind = Kind(event.kind).name.lower() if event.kind in set(Kind) else str(event.kind)
    fields = {
        **event._asdict(),
        "event_time": event.event_time.isoformat(),
        "event_id": str(event.event_id),
        "kind": kind,
    }
    return json.dumps(fields, ensure_ascii=False)


def as_text(events: Sequence[Event], npc: str) -> Iterator[str]:
    """Events for people: one or a few lines each, below the NPC and player that they are about."""
    from memory.records import Kind

    if not events:
        yield f"no events of {_plain(npc)}"
    place = None
    for event in events:
        here = (event.tenant, event.world, event.timeline)
        if here != place:
            tenant = f", tenant {event.tenant}" if event.tenant else ""
            timeline = f", timeline {event.timeline}" if event.timeline else ""
            yield _plain(f"-- {event.npc or 'all NPCs'} in {event.world}{tenant}{timeline}")
            place = here
        kind = Kind(event.kind).name.lower() if event.kind in set(Kind) else str(event.kind)
        first, *more = [_plain(line) for line in _lines(kind, event)]
        yield f"{event.event_time:%Y-%m-%d %H:%M:%S}Z {kind:<10} {first}"
        yield from (f"{MARGIN}{line}" for line in more)


def _lines(kind: str, event: Event) -> list[str]:
    body, player = event.body, event.player
    who = f"{body['name']} ({player})" if body.get("name") else player
    name = body.get("name") or "the player"
    facts = [f"- {str(text).replace('{player}', name)}" for text, *_ in body.get("facts", ())]
    match kind:
        case "turn":
            feeling = f" [{body['emotion']}]" if body.get("emotion") else ""
            return [f"{who}: {body.get('line')}", f"{event.npc}{feeling}: {body.get('reply')}", *facts]
        case "ended":
            return [f"{player}: session {body.get('session')} is over"]
        case "summary":
            text = str(body.get("text")).replace("{player}", name)
            return [f"{player}: {text} (by {body.get('by', 'rule')})", *facts]
        case "card":
            return [f"{player}: {_fields(card)} ({which})" for which, card in body.items()] or [player]
        case "intent":
            bark = f' "{body["bark"]}"' if body.get("bark") else ""
            act = " ".join(str(body[k]) for k in ("action", "target") if body.get(k))
            return [f"{act}{bark} [{body.get('emotion', '')}] by {body.get('source', '?')}"]
        case "forget":
            return [f"{player} is forgotten, {body.get('deleted')} events deleted"]
    return [_fields(body) or "-"]


def _fields(said: Any) -> str:
    """The fields of a body or a card, without empty ones."""
    if not isinstance(said, dict):
        return str(said)
    return ", ".join(f"{name} {_value(value)}" for name, value in said.items() if value not in ("", [], None))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(text: str) -> str:
    """One line. Text of players and models must not steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def _password(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        said = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--serving-password-file {file}: {getattr(error, 'strerror', None) or error}") from error
    if not said:
        raise ConfigError(f"--serving-password-file {file}: is empty")
    return said
