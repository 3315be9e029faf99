"""npcd doctor: every finding is provoked once, and says what is wrong and how to mend it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packaging.specifiers import SpecifierSet

from daemon.commands import doctor
from daemon.config import SHIPPED_MODEL, Config, MemorySettings, ServeSettings, engines_of, load
from daemon.engine_settings import FurtherEngine
from daemon.main import main
from daemon.process import diagnosis, own_servers, server_programs
from daemon.process.datafolder import DataFolder
from daemon.process.diagnosis import Check, Outcome, Room
from daemon.process.embedded import Embedded
from daemon.process.own_servers import Urls
from engines.base import Slice, StepPlan
from engines.llama import LlamaEngine, LlamaSettings, built_with, read_file
from engines.llama.sizes import fitted
from engines.room import GIB
from tests.engines.shapes import FAMILIES
from tests.patience import PATIENCE_S
from tiers.routing import LLAMA

OK, WARN, FAIL = Outcome.OK, Outcome.WARN, Outcome.FAIL
EPYC = frozenset({"avx", "avx2", "avx512f", "avx512_bf16", "fma"})
ROOM = Room(192, 12, 24, 2048, 512 << 20, 2 * GIB, 20 * GIB, False)


def named(checks: list[Check], name: str) -> list[Check]:
    """The checks of one name."""
    return [check for check in checks if check.name == name]


# -- the machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "outcome"), [((3, 10), FAIL), ((3, 11), OK), ((3, 13), OK), ((3, 14), WARN)])
def test_python(version: tuple[int, int], outcome: Outcome) -> None:
    """A Python that is too old fails. One that is newer than tested is a warning."""
    check = diagnosis.python(version)
    assert check.outcome is outcome and f"{version[0]}.{version[1]}" in check.says
    assert bool(check.fix) == (outcome is not OK)


def test_libraries() -> None:
    """A missing library fails, and a version outside its range is a warning. Both name the package to install."""
    required = {"numpy": ">=2.0", "grpcio": ">=1.71.2"}
    (check,) = diagnosis.libraries(required, {"numpy": "2.4.6", "grpcio": "1.85.1"})
    assert check.outcome is OK and "2 in versions that npcd works with" in check.says
    missing, other = diagnosis.libraries(required, {"numpy": "1.26.0"})
    assert (missing.outcome, missing.says, missing.fix) == (FAIL, "grpcio is missing", "pip install 'grpcio>=1.71.2'")
    assert (other.outcome, other.says) == (WARN, "numpy is 1.26.0; npcd works with >=2.0")
    (unknown,) = diagnosis.libraries({}, {})
    assert unknown.outcome is WARN and "make setup" in unknown.fix


def test_ranges_are_read_as_pip_reads_them() -> None:
    """Every version at and around the bounds of our ranges gives the result of the library that pip itself uses."""
    parts = (0, 1, 9, 10, 19)
    versions = [f"{a}.{b}" for a in parts for b in parts] + [f"{a}.9.{b}" for a in parts for b in parts]
    for wanted in (">=9", ">=9.10", "<10,>=1.9", ">=1.9.1,<9.0", "==9.10", "==10.0", "<1.10"):
        for version in versions:
            expected = SpecifierSet(wanted).contains(version)
            assert diagnosis.in_range(version, wanted) is expected, (version, wanted)


def test_the_ranges_of_this_installation_are_fulfilled() -> None:
    """Here, where the pinned versions are installed, no library is missing or outside its range."""
    (check,) = named(doctor.examine(lambda: load(None, environment={})), "libraries")
    assert check.outcome is OK, check.says


def test_a_library_that_does_not_load() -> None:
    """A broken llama.cpp is a finding and no stack trace, and the other checks still run."""

    def settings() -> Config:
        raise RuntimeError("Failed to load shared library 'libllama.so'")

    checks = doctor.examine(settings)
    broken = named(checks, "libraries")[-1]
    assert broken.outcome is FAIL and "libllama.so" in broken.says and broken.fix
    assert not diagnosis.well(checks) and named(checks, "compiler")


def test_compiler() -> None:
    """A compiler is needed only while llama.cpp is not built yet."""
    assert diagnosis.compiler("/usr/bin/c++", engine_there=False).outcome is OK
    assert diagnosis.compiler("", engine_there=True).outcome is OK
    check = diagnosis.compiler("", engine_there=False)
    assert check.outcome is FAIL and check.fix == "apt-get install -y g++"


@pytest.mark.parametrize(
    ("machine", "has", "built", "threads", "outcome", "says"),
    [
        ("x86_64", EPYC, {"AVX2", "AVX512", "OPENMP"}, 0, OK, "avx2 avx512f avx512_bf16"),
        ("x86_64", EPYC, {"AVX2", "AVX512_VNNI"}, 0, FAIL, "built for avx512_vnni, which is not here"),
        ("x86_64", EPYC, {"AVX2"}, 0, WARN, "built without avx512f"),
        ("x86_64", EPYC, {"AVX2", "AVX512"}, 9, WARN, "engine.threads is 9"),
        ("x86_64", frozenset({"avx"}), set[str](), 0, WARN, "without avx2"),
        ("aarch64", frozenset({"asimd", "asimddp", "bf16"}), {"NEON", "DOTPROD"}, 0, OK, "asimd asimddp bf16"),
        ("aarch64", frozenset({"asimd"}), {"NEON", "SVE"}, 0, FAIL, "built for sve"),
        ("aarch64", frozenset[str](), {"NEON"}, 0, OK, "none of the fast instructions"),
    ],
)
def test_cpu(machine: str, has: frozenset[str], built: set[str], threads: int, outcome: Outcome, says: str) -> None:
    """The processor must have the instructions that llama.cpp was built for. A warning names those that it has and the
    build does not use."""
    check = diagnosis.cpu(machine, has, built, cores=8, threads=threads)
    assert check.outcome is outcome and says in check.says
    assert bool(check.fix) == (outcome is not OK)


def test_cores_and_memory_that_are_limited_are_shown_beside_those_of_the_machine() -> None:
    """That is shown for two usable cores of sixty-four, and for a container's limit below the machine's free memory."""
    check = diagnosis.cpu("x86_64", EPYC, {"AVX2", "AVX512"}, 2, 0, "of 64 cores may be used (by affinity)")
    assert "x86_64, 2 of 64 cores may be used (by affinity), " in check.says
    limited = replace(ROOM, sequences=128, free_machine=90 * GIB, free_groups=ROOM.free)
    said = diagnosis.memory(limited, 56 << 10).says
    assert "20.00 GiB are free (90.00 GiB on the machine, 20.00 GiB of the control group's limit)" in said
    assert "control group" not in diagnosis.memory(replace(limited, free_groups=None), 56 << 10).says


def test_llama_cpp_says_what_it_was_built_for() -> None:
    """The tables know all names of its build."""
    assert built_with() & (diagnosis.X86.keys() | diagnosis.ARM.keys())


def has_ipv6() -> bool:
    """True when this machine has the address ::1; a container often does not."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_ports(tmp_path: Path) -> None:
    """A port may be taken, free, forbidden, or of an address that is not this machine's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        check = diagnosis.address("serve.http", where, doctor.listen_problem(where))
        assert check.outcome is FAIL and "listens there already" in check.says and "--http" in check.fix
    assert doctor.listen_problem("127.0.0.1:0") == ""
    assert bool(doctor.listen_problem("[::1]:0")) is not has_ipv6()
    assert diagnosis.address("serve.listen", "127.0.0.1:1", "").outcome is OK
    assert doctor.listen_problem("192.0.2.1:0"), "an address of another machine"


def test_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket may be taken, left behind, blocked by a file, or in a folder of another user."""
    path = tmp_path / "n.sock"
    where = f"unix:{path}"
    assert doctor.listen_problem(where) == ""
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen(1)
        assert "already" in doctor.listen_problem(where)
    assert doctor.listen_problem(where) == "", "left behind: npcd replaces it"
    path.unlink()
    path.touch()
    assert "no socket" in doctor.listen_problem(where)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written to" in doctor.listen_problem(where)


def test_files_of_credentials(tmp_path: Path) -> None:
    """A file that cannot be read is named, and so is a faulty one."""
    there = tmp_path / "tokens.toml"
    there.write_text('aaaaaaaaaaaaaaaa = "studio"\n')
    serve = ServeSettings(listen=(f"unix:{tmp_path}/n.sock",), http="", tokens_file=str(there), tls_key="/nowhere.key")
    checks = doctor.examine(lambda: Config(serve=serve))
    assert named(checks, "serve.tokens_file")[0].outcome is OK
    (key,) = named(checks, "serve.tls_key")
    assert key.outcome is FAIL and "/nowhere.key" in key.says and key.fix
    there.write_text("")
    (empty,) = named(doctor.examine(lambda: Config(serve=serve)), "serve.tokens_file")
    assert empty.outcome is FAIL and "no tokens" in empty.says
    pair = replace(serve, tokens_file="", tls_certificate=str(there), tls_key=str(there))
    (wrong,) = named(doctor.examine(lambda: Config(serve=pair)), "serve.tls_certificate")
    assert wrong.outcome is FAIL and "has 0 bytes" in wrong.says


# -- what is remembered ----------------------------------------------------------------------------------------------


def of_memory(memory: MemorySettings) -> list[Check]:
    """The findings about the data folder and the stores."""
    return list(doctor._remembered(Config(memory=memory)))


def of_store(store: str, url: str) -> Check:
    """The finding about one store."""
    memory = MemorySettings(folder=Path("/nowhere"))
    memory = replace(memory, redis=url) if store == "redis" else replace(memory, postgres=url)
    (check,) = named(of_memory(memory), store)
    return check


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Urls]:
    """npcd's own servers, with the archive's tables made as `npcd serve` makes them."""
    folder = DataFolder(tmp_path_factory.mktemp("stores"))
    servers = Embedded(folder)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(own_servers, "READY_S", PATIENCE_S)
            urls = servers.start()
        assert servers.reasons == []
        yield urls
    finally:
        servers.stop()
        folder.close()


def test_a_data_folder(tmp_path: Path) -> None:
    """The folder may be free, in use, or blocked, or its disk may be nearly full."""
    path = tmp_path / "npcd"
    (check,) = named(of_memory(MemorySettings(folder=path)), "memory.folder")
    assert check.outcome is OK and str(path) in check.says and "GiB are free" in check.says
    assert not path.exists(), "it changes nothing"
    folder = DataFolder(path)
    (check,) = named(of_memory(MemorySettings(folder=path)), "memory.folder")
    assert check.outcome is FAIL and f"another npcd (process {os.getpid()})" in check.says and "--data" in check.fix
    folder.close()
    (tmp_path / "file").touch()
    (check,) = named(of_memory(MemorySettings(folder=tmp_path / "file")), "memory.folder")
    assert check.outcome is FAIL and "is not a folder" in check.says and check.fix
    full = diagnosis.data_folder("/data", "", "", 100 << 20)
    assert full.outcome is WARN and "0.1 GiB are free; when it is full nothing new is remembered" in full.says


def test_nothing_is_kept(tmp_path: Path) -> None:
    """With memory off neither the stores nor the folder are checked."""
    checks = of_memory(MemorySettings(keep=False, folder=Path("/dev/null")))
    assert [check.name for check in checks] == ["memory.folder"] and checks[0].outcome is OK


def test_servers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor names the program that npcd would start, or the package to install when there is none. With "off" it
    checks nothing."""
    for store in ("redis", "postgres"):
        check = of_store(store, "")
        assert check.outcome is OK and check.says.startswith("npcd's own: /")
        off = of_store(store, "off")
        assert off.outcome is OK and off.says.startswith("off: ")
    monkeypatch.setattr(server_programs, "find_redis", lambda: None)
    monkeypatch.setattr(server_programs, "find_postgres", lambda major: None)
    redis, postgres = of_store("redis", ""), of_store("postgres", "")
    assert redis.outcome is WARN and "so there is no recent memory" in redis.says
    assert redis.fix == "apt-get install -y redis-server, or give a URL with --redis"
    assert postgres.outcome is WARN and "so there is no archive" in postgres.says and "pip install" in postgres.fix


def test_files_of_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that cannot read the folder's files are refused."""
    (tmp_path / "postgres/data").mkdir(parents=True)
    (tmp_path / "postgres/data/PG_VERSION").write_text("9\n")
    (tmp_path / "redis/appendonlydir").mkdir(parents=True)
    old = server_programs.Program(Path("/opt/redis-server"), "6.2.14")
    monkeypatch.setattr(server_programs, "find_redis", lambda: old)
    checks = of_memory(MemorySettings(folder=tmp_path))
    (redis,), (postgres,) = named(checks, "redis"), named(checks, "postgres")
    assert redis.outcome is WARN and "was written by Redis 7 or newer, and /opt/redis-server is 6.2.14" in redis.says
    assert postgres.outcome is WARN and "PostgreSQL 9, which made" in postgres.says


def test_stores_by_url(stores: Urls) -> None:
    """A store that is up and configured well passes."""
    redis = of_store("redis", stores.redis_url)
    assert redis.outcome is OK and redis.says.startswith("by URL, version ") and "kept in its file" in redis.says
    postgres = of_store("postgres", stores.postgres_url)
    assert postgres.outcome is OK and "as npcd_serving, a role that may add events" in postgres.says


def test_a_role_that_may_too_much(stores: Urls) -> None:
    """The owner's role is refused for serving."""
    check = of_store("postgres", stores.postgres_owner_url)
    assert check.outcome is WARN and "as npcd_owner, a role that may read or change" in check.says
    assert "npcd migrate" in check.fix and "--serving-role" in check.fix


def test_a_database_that_is_not_migrated(stores: Urls) -> None:
    """No event can be written to it yet, and serving goes on without it."""
    check = of_store("postgres", stores.postgres_url.replace("/npcd?", "/postgres?"))
    assert check.outcome is WARN and "there is no table events" in check.says and "npcd migrate" in check.fix


@pytest.mark.parametrize(
    ("store", "url"),
    [("redis", "redis://u:s3cret@127.0.0.1:1"), ("postgres", "postgresql://u:s3cret@127.0.0.1:1/npcd")],
)
def test_a_store_that_is_away(store: str, url: str) -> None:
    """Serving goes on without it, and the finding does not show the password."""
    check = of_store(store, url)
    assert check.outcome is WARN and "until it is there, there is no" in check.says and check.fix
    assert "s3cret" not in check.says + check.fix


@pytest.mark.parametrize(("store", "url"), [("redis", "http://u:s3cret@x"), ("postgres", "http://u:s3cret@x")])
def test_a_url_that_is_none(store: str, url: str) -> None:
    """doctor refuses it as serve would."""
    check = of_store(store, url)
    assert check.outcome is FAIL and f"--{store}" in check.fix and "s3cret" not in check.says + check.fix


@pytest.mark.parametrize(
    ("said", "outcome", "says"),
    [
        (("7.2.4", "yes", "noeviction"), OK, "kept in its file"),
        (("", "", ""), OK, "version unknown"),
        (("5.0.7", "yes", "noeviction"), WARN, "6.2 or newer"),
        (("7.2.4", "yes", "allkeys-lru"), WARN, "allkeys-lru evicts"),
        (("7.2.4", "no", "noeviction"), WARN, "a restart forgets"),
    ],
)
def test_findings_about_a_redis(said: tuple[str, str, str], outcome: Outcome, says: str) -> None:
    """The finding names a Redis that is too old, has too little memory, or keeps nothing across a restart."""
    check = diagnosis.redis(*said)
    assert check.outcome is outcome and says in check.says and bool(check.fix) == (outcome is not OK)


# -- the model -------------------------------------------------------------------------------------------------------


def of_model(tmp_path: Path, model: Path, **engine: object) -> list[Check]:
    """The findings about the model alone."""
    settings = replace(LlamaSettings(model), **engine)  # type: ignore[arg-type]
    return doctor.examine(lambda: Config(ServeSettings(listen=(f"unix:{tmp_path}/n.sock",), http=""), settings))


@pytest.mark.parametrize(
    ("content", "says"), [(None, "No such file"), (b"PK\x03\x04 a zip", "is not a GGUF file"), (b"GGUF\x03", "cut off")]
)
def test_no_model(tmp_path: Path, content: bytes | None, says: str) -> None:
    """A missing, foreign or truncated file is one finding, and checks that need the model are left out."""
    path = tmp_path / "my.gguf"
    if content is not None:
        path.write_bytes(content)
    checks = of_model(tmp_path, path)
    (check,) = named(checks, "model")
    assert check.outcome is FAIL and says in check.says and str(path) in check.says and "--model" in check.fix
    assert not named(checks, "template") and named(checks, "serve.listen")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small models of other families, written on demand."""
    folder = tmp_path_factory.mktemp("doctor")
    return lambda name: FAMILIES[name](folder / f"{name}.gguf")


def test_a_model_that_says_no_licence(tmp_path: Path, family: Callable[[str], Path]) -> None:
    """The user must look the licence up. Architecture and template are shown."""
    checks = of_model(tmp_path, family("qwen2"))
    (check,) = named(checks, "model")
    assert check.outcome is WARN and "qwen2" in check.says and "licence not stated" in check.says
    (template,) = named(checks, "template")
    assert template.outcome is OK and template.says.startswith("chat: world in a message of its own")


def test_a_model_that_chooses_intents_is_asked(tmp_path: Path, family: Callable[[str], Path]) -> None:
    """So is no model that was made for npcd, and none that intents do not go to."""
    (check,) = named(of_model(tmp_path, family("llama3")), "answers")
    assert check.outcome is not FAIL
    assert not named(of_model(tmp_path, SHIPPED_MODEL), "answers")
    settings = LlamaSettings(family("llama3"))
    routes, fast = Config().routes, FurtherEngine(SHIPPED_MODEL)
    routes = replace(routes, intent=replace(routes.intent, engine="fast"), reply=replace(routes.reply, engine=LLAMA))
    serve = ServeSettings(listen=(f"unix:{tmp_path}/n.sock",), http="")
    checks = doctor.examine(lambda: Config(serve, settings, engines={"fast": fast}, routes=routes))
    assert named(checks, "template") and not named(checks, "answers")


def test_a_model_without_a_template(tmp_path: Path, family: Callable[[str], Path]) -> None:
    """It is prompted in plain text, and the finding gives the reason."""
    (check,) = named(of_model(tmp_path, family("bare")), "template")
    assert check.outcome is WARN and check.says == "plain: the model has no chat template" and check.fix


@pytest.mark.parametrize(
    ("numbers", "outcome", "fix"),
    [
        ((2048, 900, 2048, 20, 12), OK, ""),
        ((800, 900, 2048, 20, 12), FAIL, "make engine.context_len 900 or more"),
        ((4096, 900, 2048, 20, 12), WARN, "lower engine.context_len to 2048"),
        ((2048, 900, 0, 9, 12), WARN, "raise caps.intent_tail by 3 or more"),
    ],
)
def test_context(numbers: tuple[int, int, int, int, int], outcome: Outcome, fix: str) -> None:
    """A context too short for worlds fails, as in serve. One longer than the model's, and one with little room to see,
    are warnings."""
    check = diagnosis.context(*numbers)
    assert check.outcome is outcome and check.fix.startswith(fix)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bare"])
def test_the_arithmetic_is_what_llama_cpp_takes(family: Callable[[str], Path], name: str) -> None:
    """Layers x KV heads x head lengths gives the bytes by which a sequence grows per token. Each token has a few bytes
    of position beside that.
    """
    path = family(name)
    each = diagnosis.token_bytes(read_file(path)[0])
    assert each is not None
    engine = LlamaEngine(LlamaSettings(path, sequences=2, context_len=256, threads=1))
    sizes = []
    for _ in range(2):
        engine.step(StepPlan([Slice(0, engine.length(0), np.full(1, 5, np.int32))]))
        sizes.append(len(engine.store(0)))
    engine.close()
    assert 0 <= sizes[1] - sizes[0] - each <= 32


def test_memory() -> None:
    """21 GiB of KV do not fit in 20 GiB, and doctor prints the number of sequences that would fit. Weights count, and
    an unknown size is reported as unknown."""
    each = 56 << 10
    check = diagnosis.memory(ROOM, each)
    assert "56 KiB each as f16, and 9 trunks of 1,000 tokens in RAM" in check.says
    assert check.outcome is FAIL and ": 21.11 GiB of KV, 20.00 GiB are free" in check.says
    assert check.fix == "lower engine.sequences to 181 or less or set engine.kv_type to q8_0"
    fits = replace(ROOM, sequences=181)
    assert fits.free >= 182 * 2048 * each
    assert diagnosis.memory(fits, each).outcome is WARN, "the weights do not fit beside"
    assert diagnosis.memory(replace(ROOM, sequences=128), each).outcome is OK
    assert "engine.context_len" in diagnosis.memory(replace(ROOM, free=GIB), each).fix
    small = diagnosis.memory(replace(ROOM, free=22 * GIB, buffers=GIB), each)
    assert (
        small.outcome is FAIL and "21.11 GiB of KV, 1.00 GiB for logits and computing, 22.00 GiB are free" in small.says
    )
    assert small.fix.startswith("lower engine.sequences to 191 or less")
    assert "not checked" in diagnosis.memory(replace(ROOM, on_device=True), each).says
    assert diagnosis.memory(ROOM, None).outcome is OK
    assert "156 residents" in diagnosis.memory(ROOM, None).says


def test_a_file_that_does_not_say_its_shape() -> None:
    """With per-layer heads, or KV in another form, doctor leaves the calculation to the measurement at the start."""
    said = {"general.architecture": "x", "x.block_count": "4", "x.embedding_length": "256"}
    assert diagnosis.token_bytes(said) is None
    said["x.attention.head_count"] = "8"
    assert diagnosis.token_bytes(said) == 4 * 8 * (32 + 32) * 2
    assert diagnosis.token_bytes(said, "q8_0") == 4 * 8 * (32 + 32) // 32 * 34
    assert diagnosis.token_bytes(said | {"x.attention.head_count_kv": "2"}) == 4 * 2 * (32 + 32) * 2
    assert diagnosis.token_bytes(said | {"x.attention.key_length": "64"}) == 4 * 8 * (64 + 32) * 2
    assert diagnosis.token_bytes(said | {"x.attention.kv_lora_rank": "512"}) is None


# -- the command -----------------------------------------------------------------------------------------------------


def test_all_is_well_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the shipped model on this machine the status is 0, and the licence is printed."""
    arguments = [
        *("doctor", "--listen", f"unix:{tmp_path}/n.sock", "--http", "127.0.0.1:0"),
        *("--data", str(tmp_path / "d"), "--set", "memory.keep=true"),
    ]
    assert main(arguments) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "licence Apache-2.0" in out and "0 failed" in out and str(tmp_path) in out
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    names = "python libraries compiler cpu model template context memory memory.folder redis postgres serve.listen"
    assert set(names.split()) <= {check["name"] for check in told["checks"]}


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["--listen", f"unix:/tmp/{'n' * 120}"], "a socket's path 107 at most"),
        (["--listen", "unix:/nowhere/n.sock"], "the folder /nowhere does not exist"),
        (["--set", "engine.sequenzes=3"], "did you mean 'engine.sequences'?"),
        (["--config", "/nowhere.toml"], "No such file"),
    ],
)
def test_settings_that_serve_would_refuse(arguments: list[str], fix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The status is 1, with serve's own message."""
    assert main(["doctor", "--json", *arguments]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    (check,) = (check for check in told["checks"] if check["outcome"] == "fail")
    assert check["name"] == "settings" and fix in check["fix"]


def test_sizes_on_a_gpu_are_those_that_serve_takes() -> None:
    """The host's memory says nothing about a GPU's, so little of it makes no sequences fewer."""
    config = Config()
    settings = replace(config.engine, gpu_layers=-1)
    setup = engines_of(replace(config, engine=settings))[LLAMA]
    assert doctor._sized(setup, 64 << 20)[0].settings == fitted(settings)
