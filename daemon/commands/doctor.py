"""`npcd doctor`: looks at this machine before `npcd serve` runs on it. daemon/process/diagnosis.py judges the facts.

It changes nothing, and reads of the model only what comes before the weights. A model that was not made for npcd and is
to choose intents is loaded in a process of its own and asked what NPCs do (daemon/process/asking.py). A library that
cannot be imported is a finding: our own modules that need libraries are imported where they are used.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError, StoreFailed
from core.files import from_home
from daemon.process import devices, diagnosis
from daemon.process.diagnosis import Check, Outcome

if TYPE_CHECKING:
    from daemon.config import Config, ServeSettings
    from daemon.engine_settings import EngineSetup
    from prompts.layout import Layout

CPUINFO = Path("/proc/cpuinfo")
COMPILERS = ("c++", "g++", "clang++")
OFF = "off"


def examine(settings: Callable[[], Config], world: Path | None = None) -> list[Check]:
    """Every check, in the order in which things would fail. `settings` may raise ConfigError. `world` is a world's TOML
    that is looked at as well.
    """
    checks = [diagnosis.python(sys.version_info[:2]), *_libraries()]
    engine_there = importlib.util.find_spec("llama_cpp") is not None
    checks.append(diagnosis.compiler(next(filter(None, map(shutil.which, COMPILERS)), ""), engine_there))
    try:
        config = settings()
        checks += _of(config, world)
    except ConfigError as error:
        checks.append(diagnosis.fail("settings", "npcd would refuse them", str(error)))
    except (ImportError, OSError, RuntimeError) as error:
        checks.append(diagnosis.fail("libraries", f"{type(error).__name__}: {error}", "make setup, or pip install ."))
    return checks


def _of(config: Config, world: Path | None) -> Iterator[Check]:
    """The checks that depend on the settings."""
    from daemon.rpc.addresses import look
    from engines.llama import built_with
    from engines.machine import cores_here

    cores = cores_here()
    limit = f"of {cores.machine} cores may be used (by {cores.why})" if cores.why else ""
    yield diagnosis.cpu(platform.machine(), _cpu_flags(), built_with(), cores.usable, config.engine.threads, limit)
    yield from _engines(config, world)
    yield from _remembered(config)
    serve = config.serve
    for where in serve.listen:
        yield diagnosis.address("serve.listen", where, *look(where, "--listen"))
    if serve.http:
        yield diagnosis.address("serve.http", serve.http, *look(serve.http, "--http"))
    yield from _credentials(serve)


def _engines(config: Config, world: Path | None) -> Iterator[Check]:
    """The checks of each engine that a route may use, and whether all of them fit the memory together."""
    from daemon.config import engines_of
    from daemon.engine_settings import renamed
    from engines.room import memory_free

    setups, needs = engines_of(config), dict[str, int]()
    free = memory_free()
    for name in config.routes.engines():
        left = max(1, free - sum(needs.values())) if free else 0
        setup, needs[name] = _sized(setups[name], left)
        checks = [*_model(config, setup, left, world if not needs.keys() - {name} else None), *_adapters(setup)]
        for check in checks:
            if setup.section == "engine":
                yield check
            else:
                says, fix = renamed(check.says, setup.section), renamed(check.fix, setup.section)
                yield replace(check, name=f"{name}: {renamed(check.name, setup.section)}", says=says, fix=fix)
    if len(needs) > 1:
        yield diagnosis.together(needs, free)


def _sized(setup: EngineSetup, free: int) -> tuple[EngineSetup, int]:
    """The settings with what fits in place of `auto`, and the bytes that the engine takes: weights, KV, KV in RAM."""
    from core.words import AUTO
    from engines.base import PAD_LEN
    from engines.llama.sizes import fit_ram, fitted, kv_bytes
    from engines.model_file import look

    try:
        settings = fitted(setup.settings, 0 if setup.settings.gpu_layers else free)
        file = look(settings.model)
    except ConfigError:
        return setup, 0  # _model says what is wrong
    each = kv_bytes(file.values, settings.kv_type)
    held = (settings.sequences + 1) * -(-settings.context_len // PAD_LEN) * PAD_LEN * each
    needs = 0 if settings.gpu_layers else file.size + held
    kv = setup.kv
    if kv.ram_mib == AUTO:
        kv = replace(kv, ram_mib=fit_ram(each, max(1, free - needs) if free else 0))
    return setup._replace(settings=settings, kv=kv), needs + (kv.ram_mib << 20)


def _model(config: Config, setup: EngineSetup, free: int, world: Path | None) -> Iterator[Check]:
    """The checks of one engine's model; `free` bytes of memory are left for it."""
    from daemon.model import SIGHT_LEN_MIN, context_min, lay_out
    from daemon.process.asking import asked
    from engines.base import PAD_LEN
    from engines.chat_template import chosen
    from engines.llama import SEQUENCES_MAX, default_threads, gpu_kinds, gpus, planned, read_file, send_native_log_to
    from engines.machine import own_groups, read_rate
    from engines.model_file import look, tokenizer_doubt
    from engines.room import groups_free, machine_free

    engine, kv = setup.settings, setup.kv
    send_native_log_to(None)
    try:
        said, vocab = read_file(engine.model)
    except ConfigError as error:
        yield diagnosis.no_model(str(error))
        return
    file = look(engine.model)
    size = file.size
    yield diagnosis.model(str(engine.model), size, said)
    doubt, remedy = tokenizer_doubt(file.values)
    if doubt:
        yield diagnosis.warn("tokenizer", doubt, remedy)
    template = chosen(engine.chat_template, said.get("tokenizer.chat_template", ""))
    layout, why = lay_out(vocab, template, config.caps)
    yield diagnosis.template(layout.kind, why, engine.chat_template)
    wrong = diagnosis.kv_type(engine.kv_type, said)
    yield from wrong
    if world is not None:
        yield _world(world, layout)
    trained = said.get(f"{said.get('general.architecture')}.context_length", "")
    yield diagnosis.context(
        engine.context_len,
        context_min(layout, config.caps),
        int(trained) if trained.isdigit() else 0,
        layout.sight_room,
        SIGHT_LEN_MIN,
    )
    padded = -(-engine.context_len // PAD_LEN) * PAD_LEN
    streams = min(engine.sequences, SEQUENCES_MAX - 1) + 1
    plan = None if wrong else planned(engine.model, engine, streams)  # llama.cpp would abort
    room = diagnosis.Room(
        engine.sequences, kv.prefixes, kv.lanes, padded,
        kv.ram_mib << 20, size, free, engine.gpu_layers != 0, engine.kv_type,
        machine_free() or 0, groups_free(own_groups()), plan.buffers if plan else 0,
    )  # fmt: skip
    each = diagnosis.token_bytes(said, engine.kv_type)
    fits = diagnosis.memory(room, each or (plan.kv // (streams * padded) if plan and plan.kv else None))
    yield fits
    intent = config.routes.intent
    chooses = setup.name in (intent.engine, *(row.engine for row in intent.when))
    if chooses and not layout.native and plan and fits.outcome is not Outcome.FAIL:
        yield asked(engine, template, config.caps)
    found = gpus()
    layers = said.get(f"{said.get('general.architecture')}.block_count", "")
    needs = size + (plan.kv + plan.buffers if plan else 0)
    yield devices.found(
        [(g.name, g.description, g.free, g.total) for g in found],
        gpu_kinds(), engine.gpu_layers, int(layers) + 1 if layers.isdigit() else 0, needs,
    )  # fmt: skip
    promise_ms = config.promises.gold.first_ms
    if engine.gpu_layers and found:
        rate, name = devices.on_paper(found[0].description), found[0].description
        source = f"on paper, {name}" if rate else f"the memory bandwidth of {name} is not known here"
        yield devices.step(size, rate, source, promise_ms)
    elif not engine.gpu_layers:
        threads = engine.threads or default_threads()
        yield devices.step(size, read_rate(threads), f"measured here with {threads} threads", promise_ms)


def _world(path: Path, layout: Layout) -> Check:
    from daemon.worlds.language import warnings_of, well_formed
    from daemon.worlds.policy_file import load_world

    try:
        definition = load_world(path)
    except ConfigError as error:
        return diagnosis.fail("world", "DefineWorld would refuse it", str(error))
    warnings = (
        warnings_of(layout.knows, definition.words.actions, definition.words.emotions, definition.texts)
        if layout.native
        else []
    )
    bad = definition.language if definition.language and not well_formed(definition.language) else ""
    return diagnosis.world(definition.world_id, layout.native, bad, warnings)


def _adapters(setup: EngineSetup) -> Iterator[Check]:
    from engines.lora import Adapters

    if setup.adapters.folder:
        try:
            adapters = Adapters(setup.adapters, setup.settings.model)
        except ConfigError as error:
            yield diagnosis.fail(
                "adapters", str(error), "take the file out of adapters.folder, or make it for this model"
            )
        else:
            yield diagnosis.adapters(adapters.names, setup.adapters.loaded_max)


def _libraries() -> list[Check]:
    try:
        lines = metadata.requires("npcd") or []
    except metadata.PackageNotFoundError:
        lines = []
    # Those with a marker belong to extras, or to other versions of Python.
    required = dict(re.findall(r"^([\w.-]+)(.*)$", "\n".join(line for line in lines if ";" not in line), re.MULTILINE))
    installed = {}
    for name in required:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return diagnosis.libraries(required, installed)


def _cpu_flags() -> frozenset[str]:
    """The processor's features by the kernel's names; empty when the kernel says nothing."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    said = (line.partition(":") for line in lines)
    return frozenset(next((rest.split() for key, _, rest in said if key.strip() in ("flags", "Features")), ()))


def listen_problem(where: str) -> str:
    """The reason why npcd cannot listen at a "host:port" or "unix:/path"; empty when it can."""
    from daemon.rpc.addresses import look

    return look(where).says


def _credentials(serve: ServeSettings) -> Iterator[Check]:
    """Checks that each file can be read and has the right content."""
    from daemon.rpc.credentials import read_tls, read_tokens

    for names, read in (
        (("tokens_file",), read_tokens),
        (("tls_certificate", "tls_key", "tls_client_ca"), read_tls),
    ):
        given = {f"serve.{name}": getattr(serve, name) for name in names if getattr(serve, name)}
        checks = [_readable(setting, path) for setting, path in given.items()]
        if checks and diagnosis.well(checks):
            try:
                read(serve)
            except ConfigError as error:
                checks = [diagnosis.fail(next(iter(given)), str(error), "mend the file, or leave the setting out")]
        yield from checks


def _readable(setting: str, path: str) -> Check:
    try:
        with open(from_home(path, setting), "rb") as file:
            file.read(1)
    except OSError as error:
        return diagnosis.fail(setting, f"{path}: {error.strerror}", "give a file that npcd's user can read")
    return diagnosis.ok(setting, f"{path} can be read")


def _remembered(config: Config) -> Iterator[Check]:
    """The data folder and the stores. It queries a server by URL, and writes nothing."""
    from daemon.process.datafolder import HELP_FOR_HOME, free_bytes, trouble
    from daemon.process.server_programs import postgres_for, redis_for

    memory = config.memory
    if not memory.keep:
        yield diagnosis.ok("memory.folder", "memory.keep is off: nothing outlives the process")
        return
    folder = from_home(memory.folder, "memory.folder", HELP_FOR_HOME)
    yield diagnosis.data_folder(str(folder), *trouble(folder), free_bytes(folder))
    stores = (("redis", memory.redis, _redis, redis_for), ("postgres", memory.postgres, _postgres, postgres_for))
    for store, url, by_url, own in stores:
        if url == OFF:
            yield diagnosis.no_store(store)
        elif url:
            try:
                yield by_url(config)
            except ConfigError as error:
                yield diagnosis.wrong_url(store, str(error))
            except StoreFailed as error:
                yield diagnosis.away(store, str(error))
        else:
            program, missing = own(folder / store)
            yield diagnosis.own_server(store, f"{program.path}, version {program.version}" if program else "", missing)


def _redis(config: Config) -> Check:
    """Raises ConfigError and StoreFailed."""
    from memory.recent_writer import look

    return diagnosis.redis(*look(replace(config.memory.recent, url=config.memory.redis)))


def _postgres(config: Config) -> Check:
    """Raises ConfigError and StoreFailed."""
    from memory.archive import look

    return diagnosis.postgres(*look(replace(config.memory.archive, url=config.memory.postgres)))
