"""npcd reads TOML as every system's editors save it, and names a file that is no TOML."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ConfigError
from core.files import TOML_BYTES_MAX, read_text, read_toml
from daemon.config import ServeSettings, load
from daemon.rpc.grpc_face import GrpcFace
from daemon.worlds.policy_file import load_policy, load_world
from loadtests import budget, scene
from loadtests.capacity import costs
from npcd_client import load_world as clients_load_world

BOM = b"\xef\xbb\xbf"
POLICY = b'[tavern]\nrows = [{ action = "idle", emotion = "calm" }]\n'
WRONG = [
    (b"\xff\xfea\x00=\x001\x00", "is UTF-16"),
    ("a = 1\n".encode("utf-16-be"), "is UTF-16"),
    ("name = 'märchen'\n".encode("utf-16"), "is UTF-16"),
    (b"GGUF\x03\x00\x00\x00\x01\x02\x03", "a GGUF model and no TOML"),
    (b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "a ZIP archive and no TOML"),
    (bytes(range(256)), "binary file and no TOML"),
    ("a = 1\nb = 'märchen'\n".encode("latin-1"), "byte 0xe4 in line 2 is not UTF-8"),
    (b"a = = 1\n", "line 1"),
    (b"a = " + b"[" * 100_000, "nested too deeply"),
    (b"#" * (TOML_BYTES_MAX + 1), "longer than 16 MiB"),
]


@pytest.mark.parametrize(("content", "says"), WRONG)
def test_a_file_that_is_something_else_is_told_as_that(content: bytes, says: str, tmp_path: Path) -> None:
    """The error is one line that begins with the file's name."""
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        read_toml(path, "--config x.toml")
    assert str(caught.value).startswith("--config x.toml: ") and "\n" not in str(caught.value)


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    """A file with a byte order mark, as Notepad and PowerShell write it, reads the same. So does one with Windows' line
    ends, and an empty one."""
    path = tmp_path / "x.toml"
    for content, wanted in ((b"", {}), (b"a = 'm\xc3\xa4'\r\n", {"a": "mä"})):
        path.write_bytes(BOM + content)
        assert read_toml(path, "x") == wanted
    with pytest.raises(ConfigError, match=r"^x: Is a directory$"):
        read_text(tmp_path, "x")
    with pytest.raises(ConfigError, match=r"^x: No such file"):
        read_text(tmp_path / "none", "x")


def test_every_toml_that_npcd_reads_may_have_one(tmp_path: Path) -> None:
    """A byte order mark is allowed in settings, tokens, policy, world (the client's and the daemon's reader), scene,
    budget and cost models."""
    path = tmp_path / "x.toml"

    def marked(content: bytes) -> Path:
        path.write_bytes(BOM + content)
        return path

    assert load(marked(b"[serve]\ndrain_s = 3\n"), (), {}).serve.drain_s == 3
    GrpcFace(ServeSettings(tokens_file=str(marked(b'a-token-of-some-length = "studio"\n'))))
    assert "tavern" in load_policy(str(marked(POLICY)))
    demo = (scene.SCENES / "demo.toml").read_bytes()
    assert clients_load_world(marked(demo)) == clients_load_world(scene.SCENES / "demo.toml")
    assert load_world(marked(demo)).world_id == load_world(scene.SCENES / "demo.toml").world_id
    assert scene.load_scene(marked(demo)) == scene.load_scene()
    assert budget.load_budget(marked(budget.BUDGET.read_bytes()), "village") == budget.load_budget(
        budget.BUDGET, "village"
    )
    assert costs.read(marked(costs.STATED.read_bytes())).columns == costs.read().columns


@pytest.mark.parametrize(("content", "says"), WRONG[:7])
def test_the_client_and_the_loads_tell_it_too(content: bytes, says: str, tmp_path: Path) -> None:
    """The Python client's reader of worlds and the loads' reader of scenes raise the same error."""
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    told = "is UTF-16" if "UTF-16" in says else "binary file" if "TOML" in says else says
    for read in (clients_load_world, scene.load_scene, scene.load_plan, lambda at: budget.load_budget(at, "village")):
        with pytest.raises(ValueError, match=told):
            read(path)
