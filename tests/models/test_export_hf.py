"""The Hugging Face layout says the same as the GGUF."""

import json
from pathlib import Path

import numpy as np

from models import export_hf
from models.play import SHIPPED, Played


def test_logits_agree(tmp_path: Path) -> None:
    """Logits computed from the written folder are llama.cpp's, within bf16 arithmetic."""
    export_hf.export(SHIPPED, tmp_path)
    assert export_hf.check(SHIPPED, tmp_path) < 0.05


def test_tokenizer_has_every_token(tmp_path: Path, shipped: Played) -> None:
    """tokenizer.json has every token of the GGUF at its id, the marks as special ones."""
    export_hf.export(SHIPPED, tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    ids = written["model"]["vocab"] | {t["content"]: t["id"] for t in written["added_tokens"]}
    assert sorted(ids.values()) == list(range(shipped.size))
    assert all(shipped.token_text(i) == t for t, i in ids.items())
    assert {t["id"] for t in written["added_tokens"]} == {i for i in range(shipped.size) if shipped.is_control(i)}


def test_safetensors_round_trip(tmp_path: Path) -> None:
    """Values that bf16 can represent come back unchanged."""
    arrays = {"b": np.asarray([[1.5, -2.0]], np.float32), "a": np.arange(4, dtype=np.float32)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(export_hf.safetensors(arrays))
    back = export_hf.load(path)
    assert back.keys() == arrays.keys() and all(np.array_equal(back[k], arrays[k]) for k in arrays)
