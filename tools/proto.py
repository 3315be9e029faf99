"""Turns proto/ into Python, and keeps the wire from ever breaking.

    python -m tools.proto            write npcd/v1, clients/python/npcd_client/v1 and add to proto/wire.lock
    python -m tools.proto --check    change nothing; exit 1 and report stale files, broken wire and broken rules

The daemon and the Python client each carry their own copy of the generated files, because they are installed apart.
Both copies hold the same descriptors, so that one process may import both.
"""

import argparse
import importlib.resources
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "npcd.v1"
CLIENT_PACKAGE = "npcd_client.v1"

# The folder of each copy, below the root, and its Python package.
COPIES: Mapping[str, str] = {
    "npcd/v1": PACKAGE,
    "clients/python/npcd_client/v1": CLIENT_PACKAGE,
}
WIRE_LOCK = "proto/wire.lock"
WIRE_LOCK_HEADER = """\
# Everything that npcd has ever put on the wire, one line each: fields, enum values, rpcs.
# `make proto` only adds lines. `make check` fails when one vanishes or changes: an old client still depends on it.
"""
# The oldest runtimes that the generated files run with. They refuse older ones when they are imported. A generator
# writes its own version there, and so refuses runtimes that would do: protoc 29 (protobuf 5.29) writes the same bytes.
# tests/clients/test_runtimes.py compares them and runs the client with these. The client's requirements begin here.
PROTOBUF_OLDEST = (5, 29, 0)
GRPC_OLDEST = (1, 63, 0)

INIT = '"""Generated from proto/npcd/v1 by `make proto`. Do not edit."""\n'

# Names that collide in Unity, Unreal, Godot, C# or GDScript.
FORBIDDEN_TOP_LEVEL = frozenset(
    ["Action", "Task", "Status", "Type", "Object", "Node", "Resource", "Vector2", "Vector3", "Color", "Error", "Timer"]
)
FORBIDDEN_FIELDS = frozenset(["check", "verify", "signal", "func", "var", "match", "class_name"])

File = descriptor_pb2.FileDescriptorProto
Field = descriptor_pb2.FieldDescriptorProto
Message = descriptor_pb2.DescriptorProto
Enum = descriptor_pb2.EnumDescriptorProto
Service = descriptor_pb2.ServiceDescriptorProto
Method = descriptor_pb2.MethodDescriptorProto


class ProtoRefused(Exception):
    """protoc refused the files; the text is its message."""


# ---------------------------------------------------------------------------------------------------------------------
# protoc


def _protoc(proto_root: Path, arguments: Sequence[str]) -> None:
    """Runs protoc over every .proto below proto_root, in sorted order. Raises ProtoRefused."""
    sources = sorted(str(path.relative_to(proto_root)) for path in proto_root.rglob("*.proto"))
    if not sources:
        raise ProtoRefused(f"no .proto files below {proto_root}")
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto_root}", f"-I{well_known}", *arguments, *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ProtoRefused(done.stderr.strip() or f"protoc ended with {done.returncode}")


def describe(proto_root: Path) -> descriptor_pb2.FileDescriptorSet:
    """The files below proto_root as descriptors, comments included. Raises ProtoRefused."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        _protoc(proto_root, [f"--descriptor_set_out={out}", "--include_source_info"])
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())


def generate(proto_root: Path) -> dict[str, str]:
    """Every generated file by its path below the root, for both copies. Raises ProtoRefused."""
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        _protoc(
            proto_root,
            [
                f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
                f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
                f"--python_out={folder}",
                f"--grpc_python_out={folder}",
                f"--mypy_out=quiet:{folder}",
                f"--mypy_grpc_out=quiet:{folder}",
            ],
        )
        made = Path(folder) / PACKAGE.replace(".", "/")
        written = {
            path.name: with_oldest(path.name, path.read_text()) for path in sorted(made.iterdir()) if path.is_file()
        }
    # grpc_python_out also writes an empty service file, and mypy_grpc_out a stub of it, for files without services.
    files = {name: text for name, text in written.items() if not _is_empty_service_file(name, written)}
    return {
        f"{folder}/{name}": text if package == PACKAGE else repackage(text, package)
        for folder, package in COPIES.items()
        for name, text in {"__init__.py": INIT, **files}.items()
    }


def with_oldest(name: str, text: str) -> str:
    """The same generated file, accepting the oldest runtime that it runs with. Raises ProtoRefused where it cannot."""
    major, minor, patch = PROTOBUF_OLDEST
    grpc = ".".join(map(str, GRPC_OLDEST))
    # (the place of a version, its new value), once each
    patterns = {
        "_pb2.py": [
            (r"(?<=^# Protobuf Python Version: ).*$", f"{major}.{minor}.{patch}"),
            (
                r"(?<=^    _runtime_version.Domain.PUBLIC,\n)(    \d+,\n){3}    '.*'",
                f"    {major},\n    {minor},\n    {patch},\n    ''",
            ),
        ],
        "_pb2_grpc.py": [(r"(?<=^GRPC_GENERATED_VERSION = ').*(?='$)", grpc)],
    }
    for ending, stands in patterns.items():
        for pattern, version in stands if name.endswith(ending) else ():
            text, count = re.subn(pattern, version, text, flags=re.MULTILINE)
            if count != 1:
                raise ProtoRefused(f"{name}: the generator states its version in another form; see with_oldest")
    return text


def _is_empty_service_file(name: str, written: Mapping[str, str]) -> bool:
    service_file = written.get(name.removesuffix("i") if name.endswith(".pyi") else name, "")
    return "_pb2_grpc.py" in name and "class " not in service_file


def repackage(text: str, package: str) -> str:
    """The same generated file, importing from another package. Wire names ("/npcd.v1.Npcs/...") stay as they are."""
    text = re.sub(rf"^from {re.escape(PACKAGE)} import ", f"from {package} import ", text, flags=re.MULTILINE)
    text = re.sub(rf"'{re.escape(PACKAGE)}\.(\w+_pb2)'", rf"'{package}.\1'", text)
    # grpc's error about an old runtime names its file.
    return text.replace(f"in {PACKAGE.replace('.', '/')}/", f"in {package.replace('.', '/')}/")


def stale(root: Path, wanted: Mapping[str, str]) -> list[str]:
    """Paths below root that differ from the wanted files, are missing, or are no longer generated."""
    wrong = [path for path, text in wanted.items() if not _reads(root / path, text)]
    for folder in COPIES:
        present = (path.relative_to(root).as_posix() for path in (root / folder).glob("*_pb2*.py*"))
        wrong += [path for path in present if path not in wanted]
    return sorted(wrong)


def _reads(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


# ---------------------------------------------------------------------------------------------------------------------
# The wire


def _messages(file: File) -> Iterator[tuple[str, Message]]:
    """(full name, message) of a file, nested ones included, outer before inner."""

    def below(prefix: str, messages: Sequence[Message]) -> Iterator[tuple[str, Message]]:
        for message in messages:
            name = f"{prefix}.{message.name}"
            yield name, message
            yield from below(name, message.nested_type)

    yield from below(file.package, file.message_type)


def _enums(file: File) -> Iterator[tuple[str, Enum]]:
    for enum in file.enum_type:
        yield f"{file.package}.{enum.name}", enum
    for name, message in _messages(file):
        for enum in message.enum_type:
            yield f"{name}.{enum.name}", enum


def _type_name(field: Field) -> str:
    if field.type_name:
        return field.type_name.removeprefix(".")
    return Field.Type.Name(field.type).removeprefix("TYPE_").lower()


def _streaming(method: Method) -> str:
    kinds = {(False, False): "unary", (False, True): "server", (True, False): "client", (True, True): "bidi"}
    return kinds[method.client_streaming, method.server_streaming]


def wire_lines(files: Sequence[File]) -> list[str]:
    """The parts of the wire, sorted: `field NAME NUMBER TYPE LABEL`, `value NAME NUMBER`, `rpc NAME IN OUT KIND`."""
    lines = []
    for file in files:
        for name, message in _messages(file):
            for field in message.field:
                label = "repeated" if field.label == Field.LABEL_REPEATED else "singular"
                if field.HasField("oneof_index"):
                    label = f"oneof:{message.oneof_decl[field.oneof_index].name}"
                lines.append(f"field {name}.{field.name} {field.number} {_type_name(field)} {label}")
        for name, enum in _enums(file):
            lines += [f"value {name}.{value.name} {value.number}" for value in enum.value]
        for service in file.service:
            for method in service.method:
                ends = f"{method.input_type.removeprefix('.')} {method.output_type.removeprefix('.')}"
                lines.append(f"rpc {file.package}.{service.name}.{method.name} {ends} {_streaming(method)}")
    return sorted(lines)


def read_wire_lock(path: Path) -> list[str]:
    """The recorded lines; none when there is no file yet."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def wire_breaks(recorded: Sequence[str], present: Sequence[str]) -> list[str]:
    """One sentence for each recorded line that vanished, changed, or lost its number to another name."""
    by_name = {_name(line): line for line in present}
    by_number = {number: line for line in present if (number := _number(line))}
    broken = []
    for line in recorded:
        now = by_name.get(_name(line))
        number = _number(line)
        taken = by_number.get(number) if number else None
        if now == line:
            continue
        if now is not None:
            broken.append(f"changed: was `{line}`, is `{now}`")
        elif taken is not None:
            broken.append(f"number reused: was `{line}`, is `{taken}`")
        else:
            broken.append(f"vanished: `{line}`")
    return broken


def _name(line: str) -> str:
    kind, name, *_ = line.split()
    return f"{kind} {name}"


def _number(line: str) -> tuple[str, str, str] | None:
    """(kind, owner, number) of a field or enum value."""
    kind, name, number, *_ = line.split()
    return None if kind == "rpc" else (kind, name.rpartition(".")[0], number)


# ---------------------------------------------------------------------------------------------------------------------
# The rules


def lint(files: Sequence[File]) -> list[str]:
    """One sentence for each place where a file breaks a rule that some engine's generator needs."""
    found: list[str] = []
    for file in files:
        found += _lint_file(file)
        for name, message in _messages(file):
            found += _lint_message(name, message)
        for name, enum in _enums(file):
            zero = enum.value[0].name
            if not zero.endswith("_UNSPECIFIED"):
                found.append(f"{name}: the zero value is {zero}; it must end in _UNSPECIFIED")
        for index, service in enumerate(file.service):
            found += _lint_service(file, index, service)
    return found


def _lint_file(file: File) -> Iterator[str]:
    if file.syntax != "proto3":
        yield f"{file.name}: not proto3"
    if file.package != PACKAGE:
        yield f"{file.name}: its package is {file.package or 'missing'}; it must be {PACKAGE}"
    if file.extension:
        yield f"{file.name}: extensions are not allowed"
    namespace = {part.lower() for part in file.package.split(".")}
    namespace |= {file.options.csharp_namespace.rpartition(".")[2].lower()} - {""}
    for kind, names in (
        ("message", [message.name for message in file.message_type]),
        ("enum", [enum.name for enum in file.enum_type]),
        ("service", [service.name for service in file.service]),
    ):
        for name in names:
            if name in FORBIDDEN_TOP_LEVEL:
                yield f"{file.package}.{name}: no {kind} may have this name; a game engine has it already"
            if name.lower() in namespace:
                yield f"{file.package}.{name}: a {kind} may not be named like a part of its namespace"


def _lint_message(name: str, message: Message) -> Iterator[str]:
    if message.extension or message.extension_range:
        yield f"{name}: extensions are not allowed"
    fields = {field.name: field for field in message.field}
    for field in message.field:
        place = f"{name}.{field.name}"
        if field.proto3_optional:
            yield f"{place}: no optional; use a plain field with a has_{field.name} flag"
        if field.type == Field.TYPE_GROUP:
            yield f"{place}: no groups"
        if field.type == Field.TYPE_FLOAT:
            yield f"{place}: no float; numbers with a fraction are double"
        if field.type_name == ".google.protobuf.Any":
            yield f"{place}: no Any; say what it is"
        if field.name in FORBIDDEN_FIELDS:
            yield f"{place}: no field may have this name; it is a keyword or macro in a game engine"
        flagged = field.name.removeprefix("has_")
        if flagged != field.name and (field.type != Field.TYPE_BOOL or flagged not in fields):
            yield f"{place}: a has_ flag must be a bool beside a field named {flagged}"


def _lint_service(file: File, index: int, service: Service) -> Iterator[str]:
    name = f"{file.package}.{service.name}"
    kinds = [_streaming(method) for method in service.method]
    if "unary" not in kinds:
        yield f"{name}: needs at least one unary rpc, for engines without streams"
    if "server" not in kinds:
        yield f"{name}: needs at least one server-streaming rpc, for engines without bidi streams"
    comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
    for number, method in enumerate(service.method):
        # The path of a method's comment in a file: field 6 (service), its index, field 2 (method), its index.
        comment = " ".join(comments.get((6, index, 2, number), "").split())
        if not comment:
            yield f"{name}.{method.name}: needs a comment of one sentence"
        elif not is_one_sentence(comment):
            yield f"{name}.{method.name}: its comment must be exactly one sentence, with a full stop: `{comment}`"


def is_one_sentence(text: str) -> bool:
    """True when the text ends with a full stop and no sentence ends before that."""
    return text.endswith(".") and re.search(r"[.!?]\)?\s", text) is None


# ---------------------------------------------------------------------------------------------------------------------
# The command


def problems(root: Path) -> list[str]:
    """All findings of `--check` about a checkout; empty when it is well. Changes nothing."""
    files = describe(root / "proto").file
    found = lint(files)
    present = wire_lines(files)
    recorded = read_wire_lock(root / WIRE_LOCK)
    found += [f"{WIRE_LOCK}: {broken}" for broken in wire_breaks(recorded, present)]
    if not found:
        new = sorted(set(present) - set(recorded))
        found += [f"{WIRE_LOCK}: not recorded yet: `{line}`; run `make proto`" for line in new]
        found += [f"{path}: stale; run `make proto`" for path in stale(root, generate(root / "proto"))]
    return found


def write(root: Path) -> list[str]:
    """Generates into the checkout and adds to the wire lock. If breaks of the wire forbid it, returns them and writes
    nothing."""
    files = describe(root / "proto").file
    present = wire_lines(files)
    recorded = read_wire_lock(root / WIRE_LOCK)
    found = lint(files) + [f"{WIRE_LOCK}: {broken}" for broken in wire_breaks(recorded, present)]
    if found:
        return found
    wanted = generate(root / "proto")
    wrong = stale(root, wanted)
    for path in wrong:
        target = root / path
        if path in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(wanted[path])
        else:
            target.unlink()
        sys.stdout.write(f"{'wrote' if path in wanted else 'removed'} {path}\n")
    new = sorted(set(present) - set(recorded))
    if new:
        (root / WIRE_LOCK).write_text(WIRE_LOCK_HEADER + "\n".join(present) + "\n")
        sys.stdout.write(f"added {len(new)} lines to {WIRE_LOCK}\n")
    if not wrong and not new:
        sys.stdout.write("nothing to do\n")
    return []


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.proto", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail when something is stale or broken")
    arguments = parser.parse_args(argv)
    try:
        found = problems(ROOT) if arguments.check else write(ROOT)
    except ProtoRefused as refused:
        found = [str(refused)]
    for line in found:
        sys.stderr.write(f"{line}\n")
    if any(line.startswith(f"{WIRE_LOCK}: ") and "not recorded" not in line for line in found):
        sys.stderr.write(
            "\nOld clients still speak the recorded contract. Put the old line back and add a new field, value or rpc\n"
            "beside it. Only what no release ever carried may be taken out of proto/wire.lock by hand.\n"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
