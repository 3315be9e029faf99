"""Stubs for game engines, from proto/ with the standard generators: `make stubs`.

    build/stubs/cpp      messages and calls for C++: protoc and grpc_cpp_plugin
    build/stubs/csharp   messages and calls for C#: protoc and grpc_csharp_plugin

C++ that protoc wrote belongs to one version of libprotobuf: generate with the protoc that comes with the library you
link. C# goes with any newer Google.Protobuf. A generator that is missing is named in one line. A generator that
fails ends this with its own message.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("build") / "stubs"
PACKAGES = "protobuf-compiler protobuf-compiler-grpc"
# Debian has no package with this one; tools/csharp_plugin.sh builds it from Debian's sources into the cache.
CSHARP_PLUGIN = "grpc_csharp_plugin"


class Missing(Exception):
    """A generator is not installed; the text says how to get it."""


class Failed(Exception):
    """A generator failed; the text has its exit status and its message."""


def cache() -> Path:
    """The folder for tools of others that we build: outside the checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npcd"


def plugin(name: str) -> str:
    """The path of a generator, on the PATH or in the cache; empty when it is in neither."""
    kept = cache() / name
    return shutil.which(name) or (str(kept) if os.access(kept, os.X_OK) else "")


def sources(root: Path) -> list[str]:
    """The .proto files, relative to proto/."""
    return sorted(path.relative_to(root / "proto").as_posix() for path in (root / "proto").rglob("*.proto"))


def cpp(root: Path, out: Path) -> str:
    """Writes C++ into `out`. Raises Missing and Failed."""
    calls = plugin("grpc_cpp_plugin")
    if not calls:
        raise Missing(f"grpc_cpp_plugin is missing. On Debian: apt-get install -y {PACKAGES}")
    _protoc(root, [f"--cpp_out={out}", f"--grpc_out={out}", f"--plugin=protoc-gen-grpc={calls}"])
    return ""


def csharp(root: Path, out: Path) -> str:
    """Writes C# into `out`. Returns the missing parts, or an empty text. Raises Missing and Failed."""
    calls = plugin(CSHARP_PLUGIN)
    arguments = [f"--csharp_out={out}", "--csharp_opt=file_extension=.g.cs"]
    if calls:
        arguments += [f"--grpc_out={out}", "--grpc_opt=file_suffix=Grpc.g.cs", f"--plugin=protoc-gen-grpc={calls}"]
    _protoc(root, arguments)
    return "" if calls else f"messages only, {CSHARP_PLUGIN} is missing. On Debian: bash tools/csharp_plugin.sh"


LANGUAGES = {"cpp": cpp, "csharp": csharp}


def _protoc(root: Path, arguments: Sequence[str]) -> None:
    protoc = shutil.which("protoc")
    if protoc is None:
        raise Missing(f"protoc is missing. On Debian: apt-get install -y {PACKAGES}")
    done = subprocess.run(
        [protoc, f"-I{root / 'proto'}", *arguments, *sources(root)], capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        raise Failed(f"protoc ended with exit status {done.returncode}: {done.stderr.strip() or 'it said nothing'}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.stubs", description=__doc__.splitlines()[0])
    parser.add_argument("language", nargs="?", choices=list(LANGUAGES), help="both when none is named")
    wanted = parser.parse_args(argv).language
    for language in [wanted] if wanted else LANGUAGES:
        out = ROOT / OUT / language
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        try:
            left_out = LANGUAGES[language](ROOT, out)
        except Missing as missing:
            print(f"stubs: {missing}", file=sys.stderr)
            return 1
        except Failed as failed:
            print(f"stubs: {failed}", file=sys.stderr)
            return 1
        files = sum(1 for path in out.rglob("*") if path.is_file())
        print(f"stubs: {files} files in {OUT / language}{f' ({left_out})' if left_out else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
