"""The contract: rules for proto/, parts that may never leave the wire, and generated files that are up to date."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import proto

GOOD = """\
syntax = "proto3";
package npcd.v1;

service Well {
  // Draws one bucket.
  rpc Draw(Bucket) returns (Bucket);
  // Streams buckets until the well is dry.
  rpc Watch(Bucket) returns (stream Bucket);
}

enum Depth {
  DEPTH_UNSPECIFIED = 0;
  DEPTH_SHALLOW = 1;
}

message Bucket {
  string name = 1;
  double volume_l = 2;
  bool has_volume_l = 3;
  repeated Depth depths = 4;
}
"""

Write = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Puts one text into a checkout of its own as npcd/v1/well.proto and gives the checkout."""

    def write(text: str) -> Path:
        file = tmp_path / "proto" / "npcd" / "v1" / "well.proto"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return tmp_path

    return write


def found_in(root: Path) -> list[str]:
    return proto.lint(proto.describe(root / "proto").file)


def test_the_contract_is_well() -> None:
    """proto/ keeps the rules, no recorded part has left the wire, and both generated copies are up to date."""
    assert proto.problems(proto.ROOT) == []


def test_a_good_file_keeps_all_rules(written: Write) -> None:
    """The file that the cases below spoil has no fault itself."""
    assert found_in(written(GOOD)) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("string name = 1;", "optional string name = 1;", "no optional"),
        ("double volume_l", "float volume_l", "no float"),
        ("bool has_volume_l = 3;", "bool has_depth = 3;", "has_ flag"),
        ("bool has_volume_l = 3;", "uint32 has_volume_l = 3;", "has_ flag"),
        ("string name = 1;", "string signal = 1;", "signal: no field may have this name"),
        ("string name = 1;", "string class_name = 1;", "class_name: no field may have this name"),
        ("Depth", "Status", "Status: no enum may have this name"),
        ("message Bucket {", "message Timer {}\nmessage Bucket {", "Timer: no message may have this name"),
        ("message Bucket {", "message Npcd {}\nmessage Bucket {", "may not be named like a part of its namespace"),
        ("service Well", "service V1", "may not be named like a part of its namespace"),
        ("DEPTH_UNSPECIFIED", "DEPTH_NONE", "must end in _UNSPECIFIED"),
        ("package npcd.v1;", "package npcd.v2;", "its package is npcd.v2"),
        ('syntax = "proto3";', 'syntax = "proto2";', "not proto3"),
        ("  // Draws one bucket.\n", "", "Draw: needs a comment of one sentence"),
        ("Draws one bucket.", "Draws one bucket", "must be exactly one sentence"),
        ("Draws one bucket.", "Draws one. Or two.", "must be exactly one sentence"),
        ("Watch(Bucket) returns (stream", "Watch(stream Bucket) returns (stream", "at least one server-streaming"),
        ("Draw(Bucket) returns (Bucket)", "Draw(Bucket) returns (stream Bucket)", "at least one unary"),
        (
            "package npcd.v1;",
            'package npcd.v1;\nimport "google/protobuf/any.proto";\nmessage Box { google.protobuf.Any it = 1; }',
            "Box.it: no Any",
        ),
    ],
)
def test_each_rule_is_kept(written: Write, old: str, new: str, says: str) -> None:
    """A file that breaks one rule is reported with that rule."""
    assert old in GOOD
    text = GOOD.replace(old, new)
    if "proto2" in text:
        text = text.replace("  string", "  optional string").replace("  double", "  optional double")
        text = text.replace("  bool", "  optional bool")
    assert any(says in line for line in found_in(written(text)))


def test_groups_and_extensions_are_refused(written: Write) -> None:
    """Groups and extensions, which only proto2 has, are found."""
    root = written(
        'syntax = "proto2";\npackage npcd.v1;\n'
        "message Old { extensions 10 to 20; optional group Part = 1 { optional bool x = 1; } }\n"
        "extend Old { optional bool y = 10; }\n"
    )
    found = "\n".join(found_in(root))
    assert "no groups" in found
    assert "npcd.v1.Old: extensions" in found
    assert "well.proto: extensions" in found


def test_a_file_that_protoc_refuses_is_named(written: Write) -> None:
    """The error contains protoc's own message."""
    with pytest.raises(proto.ProtoRefused, match=r"well\.proto:\d+"):
        proto.describe(written(GOOD.replace("string name = 1;", "strin name = 1;")) / "proto")


@pytest.mark.parametrize(
    ("text", "one"),
    [
        ("Takes a job and answers at once; the same job again answers the same.", True),
        ("Ends it (barge-in).", True),
        ("Answers in 2.5 ms.", True),
        ("Takes a job", False),
        ("Takes a job. Answers.", False),
        ("Is it one? It is not.", False),
    ],
)
def test_one_sentence(text: str, one: bool) -> None:
    """A sentence ends with a full stop, and no sentence ends before that."""
    assert proto.is_one_sentence(text) is one


# ---------------------------------------------------------------------------------------------------------------------
# The wire


def lines_of(root: Path) -> list[str]:
    return proto.wire_lines(proto.describe(root / "proto").file)


def test_every_part_of_the_wire_is_recorded(written: Write) -> None:
    """The lock has one line for each field, enum value and rpc, sorted."""
    assert lines_of(written(GOOD)) == [
        "field npcd.v1.Bucket.depths 4 npcd.v1.Depth repeated",
        "field npcd.v1.Bucket.has_volume_l 3 bool singular",
        "field npcd.v1.Bucket.name 1 string singular",
        "field npcd.v1.Bucket.volume_l 2 double singular",
        "rpc npcd.v1.Well.Draw npcd.v1.Bucket npcd.v1.Bucket unary",
        "rpc npcd.v1.Well.Watch npcd.v1.Bucket npcd.v1.Bucket server",
        "value npcd.v1.Depth.DEPTH_SHALLOW 1",
        "value npcd.v1.Depth.DEPTH_UNSPECIFIED 0",
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  string name = 1;\n", "", "vanished: `field npcd.v1.Bucket.name 1"),
        ("string name = 1;", "bytes name = 1;", "changed: was `field npcd.v1.Bucket.name 1 string"),
        ("string name = 1;", "string name = 9;", "is `field npcd.v1.Bucket.name 9"),
        ("string name = 1;", "repeated string name = 1;", "changed: was `field npcd.v1.Bucket.name 1"),
        ("string name = 1;", "oneof which { string name = 1; }", "oneof:which"),
        ("string name = 1;", "string title = 1;", "number reused: was `field npcd.v1.Bucket.name 1"),
        ("DEPTH_SHALLOW = 1", "DEPTH_SHALLOW = 2", "changed: was `value npcd.v1.Depth.DEPTH_SHALLOW 1`"),
        ("DEPTH_SHALLOW = 1", "DEPTH_DEEP = 1", "number reused: was `value npcd.v1.Depth.DEPTH_SHALLOW 1`"),
        ("Draw(Bucket) returns (Bucket)", "Draw(Bucket) returns (stream Bucket)", "changed: was `rpc npcd.v1.Well.Dr"),
        ("rpc Draw(", "rpc Pull(", "vanished: `rpc npcd.v1.Well.Draw"),
    ],
)
def test_a_break_of_the_wire_is_found(written: Write, old: str, new: str, says: str) -> None:
    """No part that an old client depends on may vanish, change, or lose its number to another part."""
    recorded = lines_of(written(GOOD))
    assert old in GOOD
    broken = proto.wire_breaks(recorded, lines_of(written(GOOD.replace(old, new))))
    assert any(says in line for line in broken), broken


def test_adding_breaks_nothing(written: Write) -> None:
    """New fields, values and rpcs beside the old ones pass."""
    recorded = lines_of(written(GOOD))
    more = GOOD.replace("string name = 1;", "string name = 1;\n  string rope = 5;")
    more = more.replace("DEPTH_SHALLOW = 1;", "DEPTH_SHALLOW = 1;\n  DEPTH_DEEP = 2;")
    present = lines_of(written(more))
    assert len(present) == len(recorded) + 2
    assert proto.wire_breaks(recorded, present) == []


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_make_proto_records_and_the_check_then_passes(written: Write) -> None:
    """`make proto` writes a checkout that the check accepts. A second `make proto` changes nothing."""
    root = written(GOOD)
    assert any("not recorded yet" in line for line in proto.problems(root))
    assert any("npcd/v1/well_pb2.py: stale" in line for line in proto.problems(root))
    assert proto.write(root) == []
    assert proto.problems(root) == []
    lock = (root / proto.WIRE_LOCK).read_text()
    assert proto.write(root) == []
    assert (root / proto.WIRE_LOCK).read_text() == lock


def test_a_break_is_refused_before_anything_is_written(written: Write) -> None:
    """After a break of the wire the lock and the generated files are as they were."""
    root = written(GOOD)
    proto.write(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix != ".proto"}
    written(GOOD.replace("string name = 1;", "string title = 1;"))
    assert any("number reused" in line for line in proto.write(root))
    assert any("number reused" in line for line in proto.problems(root))
    assert {path: path.read_bytes() for path in before} == before


def test_stale_files_are_named(written: Write) -> None:
    """An edited, a missing and an abandoned file count as stale in either copy, and `make proto` mends them."""
    root = written(GOOD)
    proto.write(root)
    client = root / "clients/python/npcd_client/v1"
    (root / "npcd/v1/well_pb2.py").write_text("edited = True\n")
    (client / "well_pb2.pyi").unlink()
    shutil.copy(client / "well_pb2.py", client / "gone_pb2.py")
    assert [line.partition(":")[0] for line in proto.problems(root)] == [
        "clients/python/npcd_client/v1/gone_pb2.py",
        "clients/python/npcd_client/v1/well_pb2.pyi",
        "npcd/v1/well_pb2.py",
    ]
    assert proto.write(root) == []
    assert proto.problems(root) == []


def test_each_copy_imports_its_own_package() -> None:
    """The client's copy never imports the daemon's, and only the daemon's wire names stay in it."""
    for path, text in proto.generate(proto.ROOT / "proto").items():
        package = "npcd_client.v1" if path.startswith("clients/") else "npcd.v1"
        imported = [line for line in text.splitlines() if line.startswith("from npcd")]
        assert all(line.startswith(f"from {package} import ") for line in imported), path


def test_both_copies_live_in_one_process() -> None:
    """The daemon's and the client's stubs share descriptors, so a message of one is a message of the other."""
    from npcd.v1 import intents_pb2 as daemons
    from npcd.v1 import intents_pb2_grpc as daemons_calls
    from npcd_client.v1 import intents_pb2 as clients
    from npcd_client.v1 import intents_pb2_grpc as clients_calls

    assert daemons.DESCRIPTOR.serialized_pb == clients.DESCRIPTOR.serialized_pb
    sent = clients.IntentFrame(sequence=3, intents=[clients.Intent(npc_id="mirela", action="greet")])
    assert daemons.IntentFrame.FromString(sent.SerializeToString()).intents[0].action == "greet"
    assert {daemons_calls.IntentsStub.__module__, clients_calls.IntentsStub.__module__} == {
        "npcd.v1.intents_pb2_grpc",
        "npcd_client.v1.intents_pb2_grpc",
    }


def test_a_version_in_another_form_is_refused() -> None:
    """If a generator states its version in another form, `make proto` stops, so that no newer runtime is required by
    mistake."""
    for name in ("words_pb2.py", "admin_pb2_grpc.py"):
        text = (proto.ROOT / "npcd" / "v1" / name).read_text()
        assert proto.with_oldest(name, text) == text
        spoilt = text.replace("Domain.PUBLIC", "PUBLIC").replace("GRPC_GENERATED_VERSION = '", 'VERSION = "')
        with pytest.raises(proto.ProtoRefused, match=name):
            proto.with_oldest(name, spoilt)
