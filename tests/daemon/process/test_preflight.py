"""A fault is reported in one line before anything is started. Nothing is left behind, and the exit status is 2."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import ConfigError
from daemon.config import load
from daemon.main import main
from daemon.process.datafolder import DataFolder
from tests.engines.shapes import Shape, byte_level, write
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]


def serve(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and standard error of `npcd serve` on an empty data folder, with npcd's own servers enabled."""
    done = subprocess.run(
        [sys.executable, "-m", "npcd", "serve", "--listen", f"unix:{folder}/n.sock", "--http", "127.0.0.1:0",
         "--data", str(folder / "data"), "--set", "memory.keep=true", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def text(path: Path, content: str = "") -> Path:
    """A file with that text."""
    path.write_text(content)
    return path


def small(path: Path, head_len: int = 16, **more: int) -> Path:
    """A small model with such heads, and more numbers of its architecture."""
    tokens = byte_level("qwen2", ["<|im_end|>"], "<|im_end|>")
    return write(path, Shape("qwen3", head_len=head_len, head_norms=True), tokens, "", ints=more)


Wrong = Callable[[Path], list[str]]
WRONG: dict[str, tuple[Wrong, str]] = {
    "no model": (lambda at: ["--model", str(at / "none.gguf")], "none.gguf"),
    "a folder as model": (lambda at: ["--model", str(at)], "Is a directory"),
    "no GGUF": (lambda at: ["--model", str(text(at / "m.gguf", "hello"))], "is not a GGUF file"),
    "a model for embeddings": (
        lambda at: ["--model", str(small(at / "m.gguf", pooling_type=3))],
        "is made for embeddings",
    ),
    "heads that are no whole blocks": (
        lambda at: ["--model", str(small(at / "m.gguf", 80)), "--set", "engine.kv_type=q8_0"],
        "engine.kv_type: q8_0 needs heads of a multiple of 32 values, this model's have 80",
    ),
    "no draft": (
        lambda at: ["--set", "speculation.drafts=model", "--set", f"speculation.draft_model={at}/none.gguf"],
        "speculation.draft_model: ",
    ),
    "no adapters": (lambda at: ["--set", f"adapters.folder={at}/none"], "adapters.folder: "),
    "an adapter that is none": (
        lambda at: ["--set", f"adapters.folder={text(at / 'a.gguf', 'hello').parent}"],
        "a.gguf",
    ),
    "no such adapter": (
        lambda at: ["--set", f"adapters.folder={at}", "--set", "adapters.activated=old"],
        "adapters.activated: there is no 'old'",
    ),
    "no policy": (lambda at: ["--set", f"worlds.policy_file={at}/none.toml"], "worlds.policy_file: "),
    "no tokens": (lambda at: ["--set", f"serve.tokens_file={at}/none.toml"], "serve.tokens_file: "),
    "no certificate": (
        lambda at: ["--set", f"serve.tls_certificate={at}/c.pem", "--set", f"serve.tls_key={at}/k.pem"],
        "serve.tls_",
    ),
    "a context that is too short": (lambda at: ["--set", "engine.context_len=700"], "engine.context_len: 700"),
    "no such attention": (lambda at: ["--set", "engine.flash_attention=maybe"], "engine.flash_attention: 'maybe'"),
    "minus one thread": (lambda at: ["--set", "engine.threads=-1"], "engine.threads: -1, must be 0 to 512"),
    "no URL of Redis": (lambda at: ["--redis", "redis:nonsense:5"], "Redis's URL must be"),
    "no URL of PostgreSQL": (lambda at: ["--postgres", "postgresql://[::1"], "memory.postgres: "),
    "a data folder that is a file": (lambda at: ["--data", str(text(at / "file"))], "memory.folder: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_fault_is_reported_before_anything_is_started(case: str, tmp_path: Path) -> None:
    """The error is one line. No server was started, and the engine was not tuned."""
    make, says = WRONG[case]
    code, said = serve(tmp_path, *make(tmp_path))
    assert (code, said.count("\n")) == (2, 1), said
    assert says in said
    assert not (tmp_path / "data" / "redis" / "log").exists()
    assert not (tmp_path / "data" / "postgres" / "log").exists()
    assert not (tmp_path / "n.sock").exists()


@pytest.mark.parametrize("flag", ["--model", "--config"])
def test_a_file_of_a_flag_is_looked_at_before_libraries_are_imported(flag: str) -> None:
    """Importing the libraries takes a second."""
    code = (
        f"import sys; from daemon.main import main; code = main(['serve', '--no-supervise', '{flag}', '/none/x']); "
        "print(code, sorted({'llama_cpp', 'grpc', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
    assert done.stderr.count("\n") == 1 and "/none/x" in done.stderr and "No such file" in done.stderr


NOWHERE = ("--no-supervise", "--listen", "nowhere")  # if an empty path were accepted, nothing would be started


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["serve", *NOWHERE, "--data", ""], "--data"),
        (["serve", *NOWHERE, "--model="], "--model"),
        (["doctor", "--config", ""], "--config"),
        (["archive", "show", "x", "--data", ""], "--data"),
        (["migrate", "--serving-password-file", ""], "--serving-password-file"),
        (["policy", "check", ""], "FILE.toml"),
    ],
)
def test_an_empty_path_of_a_flag_is_refused(command: list[str], names: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A script passes an empty path when its variable is not set. Neither a default nor the current folder stands in
    for it."""
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {names}: is empty; give a path" in said


def test_an_empty_path_of_a_setting_is_refused() -> None:
    """That holds for --set and the environment."""
    with pytest.raises(ConfigError, match=r"'memory\.folder' is empty; give a path"):
        load(None, ["memory.folder="], {})
    with pytest.raises(ConfigError, match=r"NPCD_ENGINE__MODEL: 'engine\.model' is empty"):
        load(None, [], {"NPCD_ENGINE__MODEL": ""})


def test_an_address_in_use_is_found_before_anything_is_started(tmp_path: Path) -> None:
    """That holds for gRPC's address and the probes'."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        for arguments, setting in ((["--http", where], "serve.http: "), (["--listen", where], "serve.listen: ")):
            code, said = serve(tmp_path, *arguments)
            assert (code, said.count("\n")) == (2, 1), said
            assert setting in said and where in said
            assert not (tmp_path / "data" / "redis" / "log").exists()


def test_a_data_folder_in_use_is_found_before_anything_is_started(tmp_path: Path) -> None:
    """The error names the process that has it, and the servers' folders are not touched."""
    holder = DataFolder(tmp_path / "data")
    code, said = serve(tmp_path)
    assert (code, said.count("\n")) == (2, 1), said
    assert "is in use by another npcd (process" in said
    assert not (tmp_path / "data" / "redis" / "log").exists()
    holder.close()
