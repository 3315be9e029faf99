"""engine.chat_template is a format's name, a Jinja file or a tokenizer_config.json, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError
from daemon.commands.doctor import examine
from daemon.config import load
from engines.chat_template import chosen
from engines.llama import LlamaEngine, LlamaSettings
from prompts.formats import FORMATS
from tests.engines.shapes import CHATML, HEADERS, Shape, bare, byte_level, write

KEPT = ["memory.keep=false", "serve.http=off"]


def test_the_models_own_is_the_default() -> None:
    """A name takes a format, and "plain" takes no template."""
    assert chosen("", "own") == "own"
    assert chosen("chatml", "own") == FORMATS["chatml"]
    assert chosen("plain", "own") == ""


def test_a_file_is_read(tmp_path: Path) -> None:
    """A Jinja file is the template. Of a tokenizer_config.json the chat template is, of several the default one."""
    path = tmp_path / "t.jinja"
    path.write_text("{{ 'é' }}", encoding="utf-8")
    assert chosen(str(path), "own") == "{{ 'é' }}"
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    assert chosen(str(path), "own") == "{{ 1 }}"
    both = [{"name": "tool_use", "template": "{{ 2 }}"}, {"name": "default", "template": "{{ 3 }}"}]
    path.write_text(json.dumps({"chat_template": both}))
    assert chosen(str(path), "own") == "{{ 3 }}"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("none.jinja", None, "is no file, and no format of these: chatml, command-r"),
        ("e.jinja", b" \n", "is empty; give a chat template"),
        ("b.jinja", b"\xff\xfe", "is no text in UTF-8"),
        ("big.jinja", b"x" * ((1 << 20) + 1), "has more than 1024 KiB"),
        ("a.json", b"{", "is no JSON"),
        ("c.json", b"{}", "has no chat_template"),
        ("d.json", b"[1]", "has no chat_template"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, name: str, content: bytes | None, why: str) -> None:
    """The error names the setting, the fault and what to give. The daemon checks it with its settings."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^engine\.chat_template: ") as caught:
        load(None, [f"engine.chat_template={path}"], {})
    assert why in str(caught.value)


def test_an_engine_uses_it_in_place_of_the_files(tmp_path: Path) -> None:
    """A file with a wrong template, or none, is a chat model with the right one. doctor says which one is used."""
    controls = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    path = write(
        tmp_path / "m.gguf", Shape("qwen2", biases=True), byte_level("qwen2", controls, "<|endoftext|>"), HEADERS
    )
    engine = LlamaEngine(LlamaSettings(path, sequences=2, weights="file", chat_template="chatml"))
    assert engine.card.chat_template == FORMATS["chatml"]
    engine.close()

    def template(*more: str) -> tuple[str, str, str]:
        checks = examine(lambda: load(None, [f"engine.model={path}", *KEPT, *more], {}))
        return next((c.outcome.value, c.says, c.fix) for c in checks if c.name == "template")

    assert template()[:1] == ("warn",) and "name its format in engine.chat_template" in template()[2]
    outcome, says, _ = template("engine.chat_template=chatml")
    assert outcome == "ok" and says.startswith("chat: ") and says.endswith("(engine.chat_template = chatml)")
    assert template("engine.chat_template=plain")[:2] == (
        "ok", "plain: the model has no chat template (engine.chat_template = plain)",
    )  # fmt: skip
    own = tmp_path / "own.jinja"
    own.write_text(CHATML)
    assert template(f"engine.chat_template={own}")[0] == "ok"


def test_serve_and_doctor_refuse_a_wrong_name_in_one_line(tmp_path: Path) -> None:
    """Neither starts anything, and both list the names."""
    sets = ["--model", str(bare(tmp_path / "m.gguf")), "--set", "engine.chat_template=chatlm", "--set", KEPT[0]]
    for command in ("serve", "doctor"):
        run = [sys.executable, "-m", "npcd", command, *sets, "--listen", f"unix:{tmp_path}/n.sock"]
        end = subprocess.run(run, capture_output=True, text=True, check=False)
        assert end.returncode == {"serve": 2, "doctor": 1}[command]
        said = end.stdout + end.stderr
        assert "engine.chat_template: 'chatlm' is no file, and no format of these: chatml" in said
        assert "Traceback" not in said
