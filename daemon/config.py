"""Every setting of the daemon: defaults next to the code they tune, composed here from TOML, environment and flags.

Order, later wins: defaults, the file of --config, NPCD_SECTION__KEY in the environment, --set section.key=value and
flags. The only file that reads the environment. Everything is checked once; a message says what is wrong and what
would be right. The docstring under a setting is its sentence in docs/SETTINGS.md, which `make settings` writes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.files import from_home, read_toml
from core.words import AUTO
from daemon.engine_settings import EngineSetup, FurtherEngine, check_names, check_setup, setups
from daemon.environment import setting_of
from daemon.given import ORIGIN_LEN_MAX, merge, names, nest
from daemon.minds.mind import IntentSettings
from daemon.rpc.calls import CallSettings
from daemon.talk.settings import DialogueSettings
from daemon.worlds.limits import WorldLimits
from daemon.worlds.policy_file import load_policy
from engines.llama import LlamaSettings
from engines.llama.settings import CONTEXT_MAX
from engines.lora import AdapterSettings
from memory.archive import ArchiveSettings
from memory.feeder import FeederSettings
from memory.hot import HotSettings
from memory.journal_settings import JournalSettings
from memory.parked import ParkedSettings
from memory.redis_connection import RecentSettings
from prompts.caps import Caps
from prompts.guard_rules import GuardSettings
from scheduler.scheduler import SchedulerSettings
from scheduler.speculation import SpeculationSettings
from tiers.activation import check_activation
from tiers.cadence import check_cadence
from tiers.pace import PaceSettings, check_pace
from tiers.promises import Promises
from tiers.routing import LLAMA, Routes, check_engines, check_routes
from tiers.share import check_share
from tiers.shedding import ShedSettings, check_shedding

SHIPPED_MODEL = Path(__file__).resolve().parent.parent / "models" / "npcd-demo.gguf"
TTL_MAX_MS = 7 * 24 * 3600 * 1000  # of game time, which may run fast
BLEND_MAX_MS = 60_000
OFF = "off"
GONE = {
    "intents.carry": "the pace is measured: give pace.late_ms, pace.late_share or pace.calm_s, and leave out the others"
}
UNIX_PATH_BYTES_MAX = 107  # sun_path, less the closing zero


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Where the daemon listens, how clients prove who they are, and how the process runs and ends."""

    listen: tuple[str, ...] = ("127.0.0.1:50061",)
    """Addresses for gRPC: `host:port` (port 0: any free port), `unix:/path` or `unix:path/from/here`. Beyond loopback
    npcd listens only with `serve.tokens_file`, or with client certificates (mTLS).
    """
    http: str = "127.0.0.1:50062"
    """Address of `/healthz`, `/readyz` and `/metrics`, as `host:port` or `unix:/path`; `off` opens no port. The probes
    answer without credentials, so keep an address beyond loopback private.
    """
    tls_certificate: str = ""
    """PEM file with the server's certificate chain; give `serve.tls_key` as well."""
    tls_key: str = ""
    """PEM file with the private key of `serve.tls_certificate`, without a password."""
    tls_client_ca: str = ""
    """PEM file with the CA whose client certificates are accepted; with it every client needs a certificate (mTLS)."""
    tokens_file: str = ""
    """TOML file with one token for each game server: `token = "tenant"`, or `token = { tenant = "...", role =
    "operator" }`.
    """
    message_bytes_max: int = 8 << 20
    """Largest gRPC message in bytes that npcd receives or sends."""
    drain_s: float = 5.0
    """The daemon ends within this time after SIGTERM or Ctrl-C, whether turns have finished or not. From 0 to 3600."""
    hang_s: float = 2.0
    """If the engine makes no progress for this time, the process exits with status 70, so that its parent starts it
    again; 0 waits without end, else at least 0.5. From 0 to 3600.
    """
    own_cores: bool = False
    """Gives the engine's thread CPU cores of its own and keeps the rest of the daemon on the others."""
    log_level: str = "info"
    """Least severe log level that is written: `debug`, `info`, `warning` or `error`."""
    log_json: bool = False
    """Writes each log line as one JSON object instead of text."""


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """The memory that NPCs keep beyond a conversation, and its stores."""

    keep: bool = True
    """Keeps memory on disk and in the stores; with `false` nothing outlives the process."""
    folder: Path = Path("~/.local/share/npcd")
    """The data folder: journal, save games, and npcd's own Redis and PostgreSQL. One daemon uses it at a time."""
    redis: str = field(default="", repr=False)  # a password may stand in it
    """URL of the Redis that holds recent memory; empty: npcd runs its own, `off`: there is none."""
    postgres: str = field(default="", repr=False)
    """URL of the PostgreSQL that holds the archive; empty: npcd runs its own, `off`: there is none."""
    reads_max: int = 64
    """Bonds (what one NPC remembers of one player) that are read from the stores at the same time."""
    bonds_max: int = 20_000
    """Bonds that are held in process; beyond that the one that is unused longest is evicted."""
    journal: JournalSettings = field(default_factory=JournalSettings)
    feeder: FeederSettings = field(default_factory=FeederSettings)
    recent: RecentSettings = field(default_factory=RecentSettings)
    parked: ParkedSettings = field(default_factory=ParkedSettings)
    archive: ArchiveSettings = field(default_factory=ArchiveSettings)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, a field for each section."""

    serve: ServeSettings = field(default_factory=ServeSettings)
    engine: LlamaSettings = field(default_factory=lambda: LlamaSettings(SHIPPED_MODEL))
    engines: Mapping[str, FurtherEngine] = field(default_factory=dict)
    adapters: AdapterSettings = field(default_factory=AdapterSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    speculation: SpeculationSettings = field(default_factory=SpeculationSettings)
    promises: Promises = field(default_factory=Promises)
    routes: Routes = field(default_factory=Routes)
    shedding: ShedSettings = field(default_factory=ShedSettings)
    pace: PaceSettings = field(default_factory=PaceSettings)
    intents: IntentSettings = field(default_factory=IntentSettings)
    dialogue: DialogueSettings = field(default_factory=DialogueSettings)
    guards: GuardSettings = field(default_factory=GuardSettings)
    hot: HotSettings = field(default_factory=HotSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    calls: CallSettings = field(default_factory=CallSettings)
    caps: Caps = field(default_factory=Caps)
    worlds: WorldLimits = field(default_factory=WorldLimits)


def load(
    file: Path | None,
    sets: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    origins: dict[str, str] | None = None,
) -> Config:
    """The configuration. Raises ConfigError naming the setting.

    `origins` receives where each setting was given, by its name; a setting that has its default is not in it.
    """
    config = Config()
    known = names(config)
    given = {} if origins is None else origins
    if file is not None:
        config = _merged(config, _read(file), str(file), given, known)
    env = os.environ if environment is None else environment
    for name, text in sorted(env.items()):
        keys = setting_of(name, known)
        if keys is not None:
            config = _merged(config, nest(keys, text), f"environment variable {name}", given, known)
    for assignment in sets:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: must be section.key=value")
        origin = f"--set {assignment[:ORIGIN_LEN_MAX]}"
        config = _merged(config, nest(path.strip().split("."), text), origin, given, known)
    config = with_off(config)
    check(config)
    return config


def _merged(
    config: Config, values: dict[str, Any], origin: str, origins: dict[str, str], known: Sequence[str]
) -> Config:
    for name, instead in GONE.items():
        section, _, key = name.partition(".")
        if isinstance(values.get(section), dict) and key in values[section]:
            raise ConfigError(f"{origin}: '{name}' is no setting any more; {instead}")
    return merge(config, values, origin, origins, known)


def with_off(config: Config) -> Config:
    """The same with serve.http = "off" as no address: no probes."""
    http = "" if config.serve.http.lower() == OFF else config.serve.http
    return dataclasses.replace(config, serve=dataclasses.replace(config.serve, http=http))


def engines_of(config: Config) -> dict[str, EngineSetup]:
    """The settings of every engine, by its name in routes."""
    first = EngineSetup(LLAMA, config.engine, config.scheduler.kv, config.adapters, config.speculation)
    return setups(first, config.engines)


def check(config: Config) -> None:
    """Checks bounds, and settings against each other. Raises ConfigError."""
    serve, engines = config.serve, engines_of(config)
    check_names(config.engines)
    for setup in engines.values():
        check_setup(setup)
    if not 1 <= config.scheduler.window.window_ms <= 10:
        raise ConfigError(f"scheduler.window.window_ms: {config.scheduler.window.window_ms}, must be 1 to 10")
    check_cadence(config.intents.cadence)
    check_activation(config.intents.activation)
    check_pace(config.pace)
    check_share(config.intents.share)
    _check_intents(config.intents)
    _check_guards(config.guards)
    _check_routes(config)
    check_shedding(config.shedding)
    if config.worlds.policy_file:
        load_policy(config.worlds.policy_file)
    if serve.log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"serve.log_level: '{serve.log_level}', must be debug, info, warning or error")
    if not 0 <= serve.drain_s <= 3600:
        raise ConfigError(f"serve.drain_s: {serve.drain_s:g}, must be 0 to 3600 seconds")
    if serve.hang_s != 0 and not 0.5 <= serve.hang_s <= 3600:
        raise ConfigError(f"serve.hang_s: {serve.hang_s:g}, must be 0.5 to 3600 seconds, or 0: never")
    for url, name in ((config.memory.recent.url, "redis"), (config.memory.archive.url, "postgres")):
        if url:
            section = "recent" if name == "redis" else "archive"
            raise ConfigError(
                f"memory.{section}.url: give it as memory.{name}, which knows npcd's own and 'off' as well"
            )
    if bool(serve.tls_certificate) != bool(serve.tls_key):
        raise ConfigError("serve.tls_certificate and serve.tls_key belong together; give both or neither")
    if serve.tls_client_ca and not serve.tls_certificate:
        raise ConfigError(
            "serve.tls_client_ca: client certificates need TLS; give serve.tls_certificate and serve.tls_key as well"
        )
    if not serve.listen:
        raise ConfigError("serve.listen: give at least one address")
    for address in serve.listen:
        # A token, or a client's certificate (mTLS), authenticates the caller. TLS alone lets everybody in.
        _check_address("serve.listen", address, bool(serve.tokens_file or serve.tls_client_ca))
    if serve.http:
        _check_address("serve.http", serve.http, credentials=True)  # beyond loopback if it is set so


def _check_intents(i: IntentSettings) -> None:
    if not 1 <= i.stall_ms <= i.answer_within_ms <= 60_000:
        raise ConfigError(
            f"intents.stall_ms: {i.stall_ms}, must be 1 to intents.answer_within_ms ({i.answer_within_ms}), "
            "which is 60000 at most"
        )
    # Every Intent carries these two; a ttl of 0 never ends.
    for name, most in (("ttl_ms", TTL_MAX_MS), ("blend_ms", BLEND_MAX_MS)):
        if not 0 <= getattr(i, name) <= most:
            raise ConfigError(f"intents.{name}: {getattr(i, name)}, must be 0 to {most}")
    for name in ("warm_look_ms", "ambient_look_ms"):
        if not 0 <= getattr(i, name) <= 5_000:
            raise ConfigError(f"intents.{name}: {getattr(i, name)}, must be 0 to 5000")
    if not 10 <= i.looks_per_s <= 1_000_000:
        raise ConfigError(f"intents.looks_per_s: {i.looks_per_s}, must be 10 to 1000000")
    if not 0 <= i.remember <= 64 or not 0 <= i.remember_s <= 3600:
        raise ConfigError("intents.remember must be 0 to 64 states, intents.remember_s 0 to 3600 seconds")


def _check_guards(guards: GuardSettings) -> None:
    for name, most in (("sentences_max", 32), ("thought_max", 100_000)):
        if not 0 <= getattr(guards, name) <= most:
            raise ConfigError(f"guards.{name}: {getattr(guards, name)}, must be 0 to {most}")


def _check_routes(config: Config) -> None:
    engines = engines_of(config)
    check_engines(config.routes, engines)
    given = [engines[name].settings.context_len for name in config.routes.engines()]
    # The context of engines that is auto is known when they are loaded; then a work is cut to it.
    shortest = min((length for length in given if length != AUTO), default=CONTEXT_MAX)
    check_routes(config.routes, config.promises, shortest, engines)
    if config.caps.bark != Caps().bark:
        raise ConfigError("caps.bark: give it as routes.bark.output_max")
    reply_max = config.routes.reply.output_max
    if not 1 <= config.dialogue.max_tokens <= reply_max:
        raise ConfigError(
            f"dialogue.max_tokens: {config.dialogue.max_tokens}, must be 1 to routes.reply.output_max ({reply_max})"
        )


def unix_path(address: str) -> str:
    """The whole path of a "unix:/path", "unix:///path" or "unix:relative/path" address; empty for others."""
    place = address.removeprefix("unix:")
    if place == address or not place or (place.startswith("//") and not place.startswith("///")):
        return ""
    return os.path.abspath("/" + place.lstrip("/") if place.startswith("/") else place)


def _check_address(setting: str, address: str, credentials: bool) -> None:
    if "\0" in address:
        raise ConfigError(f"{setting}: {address!r} has a zero byte; give an address without one")
    path = unix_path(address)
    if path:
        if len(path.encode()) > UNIX_PATH_BYTES_MAX:
            size = len(path.encode())
            raise ConfigError(f"{setting}: {path} has {size} bytes, a socket's path {UNIX_PATH_BYTES_MAX} at most")
        if not Path(path).parent.is_dir():
            raise ConfigError(f"{setting}: the folder {Path(path).parent} does not exist")
        return
    if address.startswith("unix:"):
        raise ConfigError(f"{setting}: '{address}' must be unix:/path, unix:///path or unix:path/from/here")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535 or "/" in host:
        raise ConfigError(f"{setting}: '{address}' must be host:port or unix:/path")
    if not credentials and not is_loopback(host.strip("[]")):
        raise ConfigError(
            f"{setting}: {host} is reachable from elsewhere; set serve.tokens_file, or serve.tls_client_ca with "
            "serve.tls_certificate and serve.tls_key (mTLS), or use 127.0.0.1"
        )


def is_local(address: str) -> bool:
    """True if no other machine reaches this address to listen at, "host:port" or "unix:/path"."""
    return bool(unix_path(address)) or is_loopback(address.rpartition(":")[0].strip("[]"))


def is_loopback(host: str) -> bool:
    """True if a host is this machine's own, which no other machine reaches."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _read(file: Path) -> dict[str, Any]:
    return read_toml(from_home(file, "--config"), f"--config {file}")
