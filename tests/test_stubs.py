"""Stubs for game engines have every call and message of the contract, and a missing generator is one line of error."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import proto, stubs

FILES = [file for file in proto.describe(proto.ROOT / "proto").file if file.package == proto.PACKAGE]
SERVICES = [(service.name, method.name) for file in FILES for service in file.service for method in service.method]
MESSAGES = [message.name for file in FILES for message in file.message_type]
ENUMS = [enum.name for file in FILES for enum in file.enum_type]


def written(language: Callable[[Path, Path], str], out: Path) -> tuple[str, str]:
    """All files that a generator wrote, and the names that it left out. Skips the test where the generator is not
    installed."""
    try:
        left_out = language(stubs.ROOT, out)
    except stubs.Missing as missing:
        pytest.skip(f"no stubs were generated: {missing}")
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return "\n".join(path.read_text("utf-8") for path in files), left_out


def test_cpp_has_every_call_and_message(tmp_path: Path) -> None:
    """The stubs have a Stub per service with each of its methods, and a class per message."""
    text, left_out = written(stubs.cpp, tmp_path)
    assert not left_out
    for service, method in SERVICES:
        assert f"class {service} final" in text and f'"/npcd.v1.{service}/{method}"' in text
    for message in MESSAGES:
        assert re.search(rf"^class {message} final :", text, re.MULTILINE), message


def test_csharp_has_every_message(tmp_path: Path) -> None:
    """Each message is in the namespace Npcd.V1, where enum values lose their prefix."""
    text, _ = written(stubs.csharp, tmp_path)
    assert "namespace Npcd.V1 {" in text
    for message in MESSAGES:
        assert f"public sealed partial class {message} :" in text
    for enum in ENUMS:
        assert f"public enum {enum} {{" in text
    assert "IntentSource.Model" not in text and '[pbr::OriginalName("INTENT_SOURCE_MODEL")] Model = 1' in text


def test_csharp_has_every_call(tmp_path: Path) -> None:
    """The stubs have a client class per service with each of its methods."""
    text, left_out = written(stubs.csharp, tmp_path)
    if left_out:
        pytest.skip(f"no calls were generated: {left_out}")
    for service, method in SERVICES:
        assert f"public partial class {service}Client : grpc::ClientBase<{service}Client>" in text
        assert re.search(rf"Call<[^>]+> {method}\(|\b\w+ {method}\(", text), f"{service}.{method}"


def test_a_missing_generator_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the Debian packages that contain the missing tools."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for language in stubs.LANGUAGES.values():
        with pytest.raises(
            stubs.Missing, match=r"missing\. On Debian: apt-get install -y .*protobuf-compiler"
        ) as caught:
            language(stubs.ROOT, tmp_path)
        assert "\n" not in str(caught.value)


def test_a_generator_that_fails_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make stubs` ends with 1 and prints what the generator said, and no line says that files were made."""
    protoc = tmp_path / "protoc"
    protoc.write_text("#!/bin/sh\necho 'words.proto: the plugin crashed' >&2\nexit 3\n")
    protoc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(stubs, "OUT", tmp_path / "out")
    assert stubs.main(["csharp"]) == 1
    out, err = capsys.readouterr()
    assert not out and "exit status 3" in err and "words.proto: the plugin crashed" in err
