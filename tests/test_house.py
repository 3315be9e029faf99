"""The house keeps its shape: rules for imports, one door to each library, and deciding files that only decide.

Everything is read from the source with `ast`; nothing is imported. Each rule is a function from (path, source) to its
findings, and tests below show that it finds what it forbids.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

BELOW_DAEMON = (
    "core", "tiers", "prompts", "engines", "kvcache", "scheduler", "memory", "npcd.v1", "npcd.__version__",
)  # fmt: skip
# The modules of ours that each folder may import beside its own. An entry names a module and everything in it.
MAY_IMPORT: Mapping[str, tuple[str, ...]] = {
    "core": (),
    "tiers": ("core",),
    "prompts": ("core",),
    "engines": ("core", "prompts"),
    "memory": ("core",),
    "kvcache": ("core", "engines.base"),
    "scheduler": ("core", "tiers", "engines.backend", "engines.base", "kvcache"),
    # main, build and config put the rooms together; words and wire, the contract's messages, serve all of them.
    "daemon": BELOW_DAEMON,
    "daemon/worlds": (*BELOW_DAEMON, "daemon.words", "daemon.wire"),
    "daemon/talk": (*BELOW_DAEMON, "daemon.words", "daemon.wire", "daemon.worlds"),
    "daemon/minds": (*BELOW_DAEMON, "daemon.words", "daemon.wire", "daemon.worlds", "daemon.talk"),
    "daemon/rpc": (
        *BELOW_DAEMON, "daemon.words", "daemon.wire", "daemon.config", "daemon.worlds", "daemon.talk", "daemon.minds",
        "daemon.starting",
    ),
    "daemon/process": (
        *BELOW_DAEMON, "daemon.config", "daemon.starting", "daemon.engine_settings", "daemon.model", "daemon.engines",
        "daemon.build", "daemon.rpc",
    ),
    "daemon/commands": (
        *BELOW_DAEMON, "daemon.config", "daemon.engine_settings", "daemon.model", "daemon.engines", "daemon.build",
        "daemon.worlds", "daemon.rpc", "daemon.process",
    ),
    # The way in hands over to the daemon, or to the demo, which is a client and nothing of the daemon's.
    "npcd": ("daemon.main", "loadtests.demo", "npcd_client"),
    # docs/decisions/0002: the trainer renders its corpus with the daemon's layout.
    "models": ("core", "prompts"),
    # The examination runs the files as the daemon would: with its engine and its sampling.
    "models/exam": ("models", "core", "prompts", "daemon.talk.settings", "engines"),
    "clients": ("npcd_client",),
    "loadtests": ("npcd.v1", "npcd_client"),
    "loadtests/bench": (
        "npcd.v1", "npcd_client", "loadtests", "core", "tiers", "prompts", "engines", "kvcache", "scheduler", "memory",
        "daemon",
        "models.corpus",  # facts that players tell, as the shipped model learned them
        "tools.fetch_chat_model",  # where the chat model of the area `real` lies
    ),
    # The simulation uses the daemon's deciding files; from bench it takes the rig and the figures.
    "loadtests/capacity": (
        "loadtests", "core", "tiers", "prompts", "engines", "kvcache", "scheduler",
        "daemon.rpc.calls", "daemon.minds.mind",
    ),
    "tools": ("core.words", "daemon.config", "daemon.environment"),  # the page of settings is made from them
}  # fmt: skip
OURS = frozenset(folder for folder in MAY_IMPORT if "/" not in folder) | {"npcd_client"}

# The only files that may import a library, by the library's top-level name.
DOORS: Mapping[str, tuple[str, ...]] = {
    "grpc*": ("daemon/rpc/grpc_face.py", "daemon/commands/kv.py", "clients/*", "loadtests/*"),
    "redis": (
        "memory/recent.py",
        "memory/recent_writer.py",
        "memory/redis_connection.py",
        "memory/parked.py",
        "memory/jobs.py",
    ),
    "psycopg*": ("memory/archive.py", "memory/archive_admin.py"),
    "llama_cpp": ("engines/llama/*", "models/play.py"),  # the second by decision 0002
    "vllm": ("engines/vllm.py",),
    "tensorrt_llm": ("engines/tensorrt.py",),
}
# The same for modules of our own.
INNER_DOORS: Mapping[str, tuple[str, ...]] = {
    "memory.archive": (
        "memory/journal.py", "memory/archive_admin.py", "daemon/build.py", "daemon/config.py",
        "daemon/process/keeping.py", "daemon/commands/doctor.py", "daemon/process/preflight.py",
    ),
    "memory.archive_admin": ("daemon/commands/archive.py",),
}  # fmt: skip

DECIDING = tuple(
    line for line in (ROOT / "tests/deciding.txt").read_text().splitlines() if line and not line.startswith("#")
)
NOT_FOR_DECIDING = frozenset({"time", "asyncio", "logging", "structlog", "threading", "socket", "grpc"})

# The modules through which the daemon sees engines. The files below put an engine behind the port, or check its files.
PORT = ("engines.backend", "scheduler.ticket", "engines.lora")
MAY_LOOK_BEHIND_THE_PORT = (
    "daemon/model.py", "daemon/engines.py", "daemon/engine_settings.py", "daemon/build.py", "daemon/config.py",
    "daemon/process/*", "daemon/commands/doctor.py",
)  # fmt: skip

MAY_PRINT = (
    "loadtests/*", "tools/*", "models/*", "daemon/main.py", "npcd/__main__.py",
    "clients/*/examples/*", "clients/conformance/*",
)  # fmt: skip
# The last two set what gRPC reads when it is imported.
MAY_READ_ENVIRONMENT = ("daemon/config.py", "tools/*", "npcd/__main__.py", "loadtests/__init__.py")

# Generated by `make proto`; it keeps its own rules.
GENERATED = ("npcd/v1/*", "clients/python/npcd_client/v1/*")
# Test folders that are not named after a folder of the house.
OTHER_TEST_FOLDERS = frozenset({"scenarios", "sim"})

# Tests that may look into private parts of what they are not about, and why.
MAY_LOOK_INSIDE = {
    "tests/sim/test_laws_can_fail.py": "plants a fault in the scheduler's insides",
    "tests/daemon/stretches.py": "measures every callback of the event loop, which asyncio offers no way to",
}

Rule = Callable[[str, ast.Module], Iterator[str]]


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported, wherever it stands; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def folder_of(path: str) -> str:
    """The entry of MAY_IMPORT that a file falls under: the longest one that holds it."""
    return max((folder for folder in MAY_IMPORT if path.startswith(f"{folder}/")), key=len, default="")


def imports_point_down(path: str, tree: ast.Module) -> Iterator[str]:
    folder = folder_of(path)
    allowed = (folder.replace("/", "."), *MAY_IMPORT[folder])
    for line, name in imports(tree):
        if name.partition(".")[0] in OURS and not any(within(name, module) for module in allowed):
            yield f"{path}:{line}: {folder} may not import {name}"


def no_relative_imports(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            yield f"{path}:{node.lineno}: relative import"


def one_door_each(path: str, tree: ast.Module) -> Iterator[str]:
    for line, name in imports(tree):
        for library, doors in DOORS.items():
            if fnmatch(name.partition(".")[0], library) and not matches(path, doors):
                yield f"{path}:{line}: {name} may be imported only in {', '.join(doors)}"
        for module, doors in INNER_DOORS.items():
            if within(name, module) and not matches(path, doors):
                yield f"{path}:{line}: {name} may be imported only in {', '.join(doors)}"


def deciding_files_only_decide(path: str, tree: ast.Module) -> Iterator[str]:
    if not matches(path, DECIDING):
        return
    for node in ast.walk(tree):
        is_async = isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await)
        if is_async or (isinstance(node, ast.comprehension) and node.is_async):
            yield f"{path}:{getattr(node, 'lineno', '?')}: a deciding file is synchronous"
    for line, name in imports(tree):
        if name.partition(".")[0] in NOT_FOR_DECIDING:
            yield f"{path}:{line}: a deciding file may not import {name}"


def no_print(path: str, tree: ast.Module) -> Iterator[str]:
    if matches(path, MAY_PRINT):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{path}:{node.lineno}: print"


def environment_in_config_only(path: str, tree: ast.Module) -> Iterator[str]:
    if matches(path, MAY_READ_ENVIRONMENT):
        return
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names and getattr(node.value, "id", "") == "os":
            yield f"{path}:{node.lineno}: os.{node.attr}; the environment is read in daemon/config.py"
    for line, name in imports(tree):
        if name.startswith("os.") and name.removeprefix("os.") in names:
            yield f"{path}:{line}: {name}; the environment is read in daemon/config.py"


def the_daemon_sees_engines_through_the_port(path: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith("daemon/") or matches(path, MAY_LOOK_BEHIND_THE_PORT):
        return
    for line, name in imports(tree):
        behind = name.partition(".")[0] in {"engines", "scheduler", "kvcache"}
        if behind and not any(within(name, module) for module in PORT):
            yield f"{path}:{line}: {name} is behind the port; the daemon's rooms import only {', '.join(PORT)}"


def no_engine_is_asked_for_its_class(path: str, tree: ast.Module) -> Iterator[str]:
    """An engine says what it can do (see engines/base.py); code that asks for its class does not serve the next one."""
    classes = {
        name.rpartition(".")[2]
        for _, name in imports(tree)
        if within(name, "engines") and not within(name, "engines.backend")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"isinstance", "issubclass"}:
            for named in ast.walk(node.args[1]):
                name = getattr(named, "id", getattr(named, "attr", ""))
                if name in classes or name.endswith(("Engine", "Backend", "Drafter", "Drafts")):
                    yield f"{path}:{node.lineno}: {node.func.id} of {name}"  # type: ignore[attr-defined]


RULES: tuple[Rule, ...] = (
    the_daemon_sees_engines_through_the_port,
    no_engine_is_asked_for_its_class,
    imports_point_down,
    no_relative_imports,
    one_door_each,
    deciding_files_only_decide,
    no_print,
    environment_in_config_only,
)


@cache
def parsed(file: Path) -> ast.Module:
    """A source file's tree."""
    return ast.parse(file.read_text(), file.relative_to(ROOT).as_posix())


def sources() -> dict[str, ast.Module]:
    """Every Python file of ours that is not a test and not generated, parsed, by its path below the root."""
    found = {}
    for folder in sorted(folder for folder in MAY_IMPORT if "/" not in folder):
        for file in sorted((ROOT / folder).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            if not matches(path, GENERATED):
                found[path] = parsed(file)
    return found


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Each way round in a graph of modules, once, as the modules on it in order."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(trail[trail.index(module) :])
        elif module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def import_graph(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """The imports between our own modules: {importing module: imported modules}, by dotted names."""
    prefix = "clients.python."
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".").removeprefix(prefix): tree
        for path, tree in trees.items()
    }
    graph: dict[str, set[str]] = {}
    for module, tree in modules.items():
        named = (name for _, name in imports(tree))
        # `from core import words` imports the module core.words; `from core.words import Tier` imports core.words.
        nearest = (name if name in modules else name.rpartition(".")[0] for name in named)
        graph[module] = {name for name in nearest if name in modules and name != module}
    return graph


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule: Rule) -> None:
    """Each file of ours keeps the rule."""
    found = [line for path, tree in sources().items() for line in rule(path, tree)]
    assert not found, "\n" + "\n".join(found)


def test_no_test_asks_an_engine_for_its_class() -> None:
    """Tests know the engine that they made: they need no class to find out."""
    found: list[str] = []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        found += no_engine_is_asked_for_its_class(path, ast.parse(file.read_text(), path))
    assert not found, "\n" + "\n".join(found)


def test_there_is_a_house() -> None:
    """The rules above look at real files: every folder that they name exists, and no folder with Python is left out."""
    paths = sources()
    for folder in MAY_IMPORT:
        if "/" not in folder:
            assert any(path.startswith(f"{folder}/") for path in paths), f"no Python files in {folder}/"
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    left = {name for name in top if not name.startswith(".")} - OURS - {"tests", "build", "dist", "results"}
    assert not left, f"folders with Python that no rule speaks of: {sorted(left)}"
    for pattern in DECIDING:
        assert any(fnmatch(path, pattern) for path in paths), f"tests/deciding.txt: nothing is called {pattern}"


def test_no_import_cycles() -> None:
    """Our modules import each other in one direction only."""
    assert cycles(import_graph(sources())) == []


def test_no_dependency_takes_our_names() -> None:
    """No installed distribution but our own brings a top-level name that we use."""
    owners = metadata.packages_distributions()
    taken = {
        name: sorted(foreign)
        for name in OURS
        if (foreign := {owner for owner in owners.get(name, ()) if not owner.lower().startswith("npcd")})
    }
    assert not taken


def mirrored(path: str) -> list[Path]:
    """The files that a test file is about: of tests/a/test_b.py these are a/b.py, all in a/b/, and b.py or b_*.py
    anywhere below a/.
    """
    folder, _, name = path.removeprefix("tests/").removesuffix(".py").rpartition("/")
    folder = {"clients": "clients/python/npcd_client"}.get(folder, folder)
    stem = name.removeprefix("test_")

    def about(file: Path) -> bool:
        below = file.relative_to(ROOT / folder).with_suffix("")
        whole = "_".join(below.parts)
        return stem in (below.name, whole) or whole.startswith(f"{stem}_")

    return [file for file in sorted((ROOT / folder).rglob("*.py")) if about(file)] if folder else []


def names_made_in(tree: ast.AST) -> Iterator[str]:
    """The names of everything that a file defines: functions, classes, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def strangers_privates(tree: ast.Module, own: frozenset[str]) -> Iterator[tuple[int, str]]:
    """(line, code) of each `thing._private` where neither this file nor the files that it is about (`own`) define
    `_private`. The public methods of named tuples begin with an underscore, too.
    """
    known = own | set(names_made_in(tree)) | {"_replace", "_asdict", "_fields", "_make"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = getattr(node.value, "id", "")
            if owner not in ("self", "cls") and node.attr not in known:
                yield node.lineno, ast.unparse(node)


def test_a_test_looks_into_its_own_file_alone() -> None:
    """No test reads or sets what is private to another file than the one that it is about."""
    found = []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        if path not in MAY_LOOK_INSIDE:
            own = frozenset(name for source in mirrored(path) for name in names_made_in(parsed(source)))
            found += [f"{path}:{line}: {code}" for line, code in strangers_privates(parsed(file), own)]
    assert not found, "\n" + "\n".join(found)


def test_every_test_folder_mirrors_a_folder() -> None:
    """tests/X holds tests of X/, except for the few folders of whole scenarios."""
    for folder in sorted({file.parent for file in (ROOT / "tests").rglob("test_*.py")}):
        mirrored = folder.relative_to(ROOT / "tests")
        if mirrored.parts and mirrored.parts[0] not in OTHER_TEST_FOLDERS:
            assert (ROOT / mirrored).is_dir(), f"tests/{mirrored} mirrors nothing"


# ---------------------------------------------------------------------------------------------------------------------
# The rules can fail.


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (imports_point_down, "core/words.py", "import tiers.route"),
        (imports_point_down, "tiers/route.py", "from engines.base import StepPlan"),
        (imports_point_down, "kvcache/homes.py", "from engines import llama"),
        (imports_point_down, "kvcache/homes.py", "import engines"),
        (imports_point_down, "scheduler/loop.py", "def f():\n    from engines.llama import Llama"),
        (imports_point_down, "scheduler/loop.py", "import daemon.main"),
        (imports_point_down, "memory/hot.py", "import importlib\nimportlib.import_module('scheduler.loop')"),
        (imports_point_down, "daemon/main.py", "from npcd_client import connect"),
        (imports_point_down, "daemon/main.py", "import loadtests.demo"),
        (imports_point_down, "daemon/worlds/worlds.py", "from daemon.minds.mind import Mind"),
        (imports_point_down, "daemon/talk/dialogue.py", "from daemon.minds import table"),
        (imports_point_down, "daemon/minds/intents.py", "from daemon.rpc.calls import Calls"),
        (imports_point_down, "daemon/rpc/calls.py", "from daemon.build import Daemon"),
        (imports_point_down, "daemon/rpc/calls.py", "import daemon.process.serve"),
        (imports_point_down, "daemon/process/serve.py", "from daemon.commands import doctor"),
        (the_daemon_sees_engines_through_the_port, "daemon/rpc/status.py", "from scheduler.scheduler import Scheduler"),
        (the_daemon_sees_engines_through_the_port, "daemon/minds/pressure.py", "import scheduler.meter"),
        (the_daemon_sees_engines_through_the_port, "daemon/rpc/calls.py", "from kvcache.homes import Homes"),
        (the_daemon_sees_engines_through_the_port, "daemon/talk/dialogue.py", "from engines.base import Vocab"),
        (no_engine_is_asked_for_its_class, "engines/tune.py", "isinstance(x, LlamaEngine)"),
        (no_engine_is_asked_for_its_class, "daemon/build.py", "isinstance(x, (int, engines.llama.LlamaEngine))"),
        (
            no_engine_is_asked_for_its_class,
            "loadtests/bench/rig.py",
            "from engines.draft import ModelDrafts as M, Guesses\nisinstance(x, Guesses | None)",
        ),
        (one_door_each, "daemon/rpc/calls.py", "import grpc"),
        (imports_point_down, "models/train.py", "from daemon.minds.intents import Intents"),
        (imports_point_down, "models/train.py", "import engines.base"),
        (imports_point_down, "clients/python/npcd_client/talk.py", "from npcd.v1 import words_pb2"),
        (imports_point_down, "loadtests/demo.py", "from scheduler.loop import Loop"),
        (imports_point_down, "loadtests/bench.py", "from scheduler.loop import Loop"),
        (imports_point_down, "loadtests/bench/steps.py", "from models.build import build"),
        (imports_point_down, "npcd/__main__.py", "from core import words"),
        (no_relative_imports, "core/work.py", "from . import words"),
        (no_relative_imports, "core/work.py", "from .words import Tier"),
        (one_door_each, "scheduler/loop.py", "import grpc"),
        (one_door_each, "memory/hot.py", "from grpc_health.v1 import health"),
        (one_door_each, "memory/hot.py", "import redis.asyncio"),
        (one_door_each, "memory/recent.py", "from psycopg_pool import ConnectionPool"),
        (one_door_each, "engines/sim.py", "import llama_cpp"),
        (one_door_each, "daemon/build.py", "import vllm"),
        (one_door_each, "engines/vllm.py", "import tensorrt_llm"),
        (one_door_each, "daemon/main.py", "from memory import archive"),
        (one_door_each, "daemon/build.py", "from memory.archive_admin import migrate"),
        (deciding_files_only_decide, "tiers/route.py", "async def f(): pass"),
        (deciding_files_only_decide, "scheduler/planner.py", "import time"),
        (deciding_files_only_decide, "prompts/layout.py", "from logging import getLogger"),
        (deciding_files_only_decide, "kvcache/homes.py", "def f():\n    import grpc.aio"),
        (deciding_files_only_decide, "core/choice.py", "async def f(x):\n    return [i async for i in x]"),
        (no_print, "scheduler/loop.py", "print('x')"),
        (environment_in_config_only, "engines/llama/engine.py", "import os\nos.environ['A']"),
        (environment_in_config_only, "daemon/main.py", "import os\nos.getenv('A')"),
        (environment_in_config_only, "loadtests/demo.py", "from os import environ"),
    ],
)
def test_a_rule_finds_what_it_forbids(rule: Rule, path: str, source: str) -> None:
    """Each forbidden line is found, and the finding names its file."""
    found = list(rule(path, ast.parse(source)))
    assert found
    assert found[0].startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("scheduler/loop.py", "import time, threading\nfrom engines.base import StepPlan\nimport kvcache.homes"),
        ("kvcache/homes.py", "from engines import base\nfrom core.work import Work\nimport numpy"),
        ("models/train.py", "from prompts.layout import Layout\nfrom prompts import layout\nprint(1)"),
        ("daemon/rpc/calls.py", "from engines.backend import Snapshot\nfrom scheduler.ticket import Door"),
        ("scheduler/ticket.py", "from engines.backend import Taken\nisinstance(what, Taken)"),
        ("daemon/rpc/grpc_face.py", "import grpc\nfrom npcd.v1 import npcs_pb2\nfrom npcd import __version__"),
        ("daemon/build.py", "import memory.archive\nfrom engines.llama import Llama"),
        ("memory/archive_admin.py", "import psycopg"),
        ("loadtests/bench/steps.py", "from scheduler.loop import Loop\nfrom loadtests.report import table"),
        ("clients/python/npcd_client/talk.py", "import grpc\nfrom npcd_client.v1 import words_pb2"),
        ("daemon/config.py", "import os\nos.environ.get('A')"),
    ],
)
def test_the_rules_allow_what_the_design_allows(path: str, source: str) -> None:
    """The rules permit the imports that the folders need."""
    assert [line for rule in RULES for line in rule(path, ast.parse(source))] == []


def test_a_cycle_is_found() -> None:
    """Two modules that import each other are a cycle, and so are three in a ring."""
    trees = {
        "core/a.py": ast.parse("from core import b"),
        "core/b.py": ast.parse("from core.a import X"),
        "core/c.py": ast.parse("import core.a"),
    }
    assert cycles(import_graph(trees)) == [["core.a", "core.b"]]
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("rig.daemon.calls._table.minds", ["rig.daemon.calls._table"]),
        ("queue._heap; queue._other", ["queue._other"]),
        ("class Mine:\n    def f(self):\n        return self._x + self.door._open", ["self.door._open"]),
        ("def _mine(): ...\nthing._mine()", []),
        ("key._replace(npc='x'); value.__class__", []),
    ],
)
def test_a_look_into_another_file_is_found(source: str, found: list[str]) -> None:
    """A private name counts unless the test or the file that it is about defines it."""
    assert [code for _, code in strangers_privates(ast.parse(source), frozenset({"_heap"}))] == found


@pytest.mark.parametrize(
    ("test", "about"),
    [
        ("tests/scheduler/test_queues.py", ["scheduler/queues.py"]),
        ("tests/clients/test_live.py", ["clients/python/npcd_client/live.py"]),
        ("tests/memory/test_recent.py", ["memory/recent.py", "memory/recent_keys.py", "memory/recent_writer.py"]),
        ("tests/conftest.py", []),
    ],
)
def test_a_test_is_about_the_files_of_its_name(test: str, about: list[str]) -> None:
    """The folder and the name decide."""
    assert [file.relative_to(ROOT).as_posix() for file in mirrored(test)] == about
