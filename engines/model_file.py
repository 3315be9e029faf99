"""Checks of a model's file and its parts before llama.cpp reads it; each error says what to do.

Only llama.cpp knows which architectures it runs: engines/llama/loading.py asks it, and `refused` puts its answer into
words.

Large models come in parts, NAME-00001-of-00003.gguf and so on, as llama.cpp's gguf-split cuts them: the first one is
given, and names the others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from engines.gguf_file import MAGIC, GgufFile, blocks, read_gguf

PART = re.compile(r"^(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
PIECE = re.compile(r"part[-_.]?\d+[-_.]?of[-_.]?\d+|-split-[a-z]{1,2}$", re.IGNORECASE)
PARTS_MAX = 1000
GIVE = "give a GGUF file with --model"
CONVERT = "convert it with llama.cpp's convert_hf_to_gguf.py, or download the model as GGUF"
# Files that people take for GGUF files: how they begin, what they are, and what to do.
BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer and not the file itself", "fetch it with: git lfs pull"),
    (b"PK\x03\x04", "is a zip archive, as PyTorch checkpoints are", CONVERT),
    (b"\x80\x02", "is a pickle, as old PyTorch checkpoints are", CONVERT),
    (b"\x1f\x8b", "is compressed with gzip", "unpack it first"),
    (b"<!", "is a web page", "the download went wrong: download the file itself"),
    (b"<html", "is a web page", "the download went wrong: download the file itself"),
    *((magic, "is a GGML file from before GGUF", CONVERT) for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")),
)
PRE = "tokenizer.ggml.pre"
# The rules by which the families of byte-level tokenizers split a text, as llama.cpp names them.
PRE_NAMES = "llama-bpe for Llama 3, qwen2 for Qwen, tekken for Mistral, gpt-2, deepseek-llm, smollm, command-r, ..."
BYTES = 256
_SAFETENSORS = re.compile(rb'^.{8}\{\s*"', re.DOTALL)
# Families that read a whole text at once and write none. Families whose files say so need not be listed here.
ENCODERS = frozenset(
    "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert t5encoder gemma-embedding "
    "llama-embed wavtokenizer-dec dream llada llada-moe rnd1".split()
)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on the disk: all parts in order (often one), and the plain values of the first one's head."""

    parts: tuple[Path, ...]
    values: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.stat().st_size for part in self.parts)

    def sha256(self) -> str:
        """The hash of all parts, one after the other; of a model in one file, the file's. Reads everything."""
        digest = hashlib.sha256()
        for part in self.parts:
            with part.open("rb") as file:
                for piece in blocks(file):
                    digest.update(piece)
        return digest.hexdigest()


def look(path: Path) -> ModelFile:
    """The file and its parts. Raises ConfigError for what is no model, naming what it is and what to do."""
    head = _head(path)
    kind = str(head.values.get("general.type", ""))
    if kind == "adapter" or any(name.endswith((".lora_a", ".lora_b")) for name in head.tensors):
        raise ConfigError(
            f"model: {path} is a LoRA adapter, which changes a model and is none; give its base model with --model, "
            "and put the adapter into adapters.folder"
        )
    if kind == "mmproj" or head.values.get("general.architecture") in ("clip", "mmproj"):
        raise ConfigError(
            f"model: {path} is a multimodal projector (mmproj), which turns images into tokens and writes nothing; "
            "give the language model that it belongs to with --model"
        )
    if kind == "imatrix" or "imatrix.datasets" in head.values:
        raise ConfigError(f"model: {path} is an importance matrix for quantizing; give the model itself with --model")
    file = ModelFile(_parts(path, head), head.values)
    _check_writes(path, head.values)
    _check_tokens(path, head)
    return file


def refused(path: Path, lines: Sequence[str], version: str) -> ConfigError:
    """The error for a file that llama.cpp refused, by its own lines about it."""
    said = " ".join(lines)
    unknown = re.search(r"unknown model architecture: '([^']*)'", said)
    if unknown:
        return ConfigError(
            f"model: {path} is of the architecture '{unknown.group(1)}', which this llama.cpp (llama-cpp-python "
            f"{version}) does not know; take a newer llama-cpp-python, or a model of another family"
        )
    outside = re.search(r"tensor '([^']*)' data is not within the file bounds", said)
    if outside:
        parts = look(path).parts
        held = (
            (part for part in parts if outside.group(1) in read_gguf(part).tensors) if len(parts) > 1 else iter(parts)
        )
        return ConfigError(_cut_off(next(held, path)))
    kind = re.search(r"has invalid ggml type (\d+)", said)
    if kind:
        return ConfigError(
            f"model: {path} has weights of a type ({kind.group(1)}) that this llama.cpp (llama-cpp-python {version}) "
            "does not know; take a newer llama-cpp-python, or the model in an older quantization such as Q4_K_M"
        )
    if re.search(r"has offset \d+, expected \d+", said):
        return ConfigError(f"model: {path} is damaged: its list of tensors contradicts itself; download it again")
    key = re.search(r"key not found in model: (\S+)", said)
    if key:
        return ConfigError(
            f"model: {path} lacks the value '{key.group(1)}', without which llama.cpp cannot run it; take another "
            "conversion of the model"
        )
    if "pre-tokenizer" in said or "pre tokenizer" in said:
        name = re.search(r"unknown pre-tokenizer type: '([^']*)'", said)
        return ConfigError(
            f"model: {path} has a tokenizer that this llama.cpp (llama-cpp-python {version}) does not know"
            f"{f' ({PRE} = {name.group(1)})' if name else ''}; take a newer llama-cpp-python, or another model"
        )
    if "tokenizer merges" in said or "tokenizer vocab" in said:
        return ConfigError(f"model: {path} has an incomplete tokenizer; take another conversion of the model")
    reasons = (line.partition("error loading model: ")[2] for line in lines)
    reason = next((r for r in reasons if r), "it gives no reason")
    return ConfigError(
        f"model: llama.cpp cannot load {path}: {' '.join(reason.split())}; the file may be damaged, or newer than this "
        f"llama.cpp (llama-cpp-python {version})"
    )


def _head(path: Path) -> GgufFile:
    """The file's head. Raises ConfigError for what is no GGUF file that can be read."""
    try:
        with path.open("rb") as file:
            first = file.read(64)
    except OSError as error:
        raise ConfigError(f"model: cannot read {path} ({error.strerror}); {GIVE}") from error
    if not first:
        raise ConfigError(f"model: {path} is not a GGUF file: it is empty; download it again")
    if first[:4] != MAGIC:
        for beginning, what, do in BEGINNINGS:
            if first.startswith(beginning):
                raise ConfigError(f"model: {path} is not a GGUF file: it {what}; {do}")
        if _SAFETENSORS.match(first):
            raise ConfigError(f"model: {path} is not a GGUF file: it is a safetensors file; {CONVERT}")
        raise ConfigError(f"model: {path} is not a GGUF file (it starts with {first[:4]!r}); {GIVE}")
    version = int.from_bytes(first[4:8], "little")
    if len(first) < 24:
        raise ConfigError(_cut_off(path))
    if version == 1:
        raise ConfigError(f"model: {path} is of GGUF version 1, which llama.cpp no longer reads; {CONVERT}")
    if version & 0xFFFF == 0:
        raise ConfigError(f"model: {path} is a GGUF file for big-endian machines; download the usual one")
    if version not in (2, 3):
        raise ConfigError(f"model: {path} is of GGUF version {version}; versions 2 and 3 are read; take a newer npcd")
    try:
        return read_gguf(path)
    except ConfigError as error:
        raise ConfigError(f"{_cut_off(path)} ({error})") from error


def _cut_off(path: Path) -> str:
    if PIECE.search(path.name):
        return f"model: {path} is cut off, and looks like one piece of a file; join the pieces with cat, in order"
    return f"model: {path} is cut off: the file ends before its data does; download it again"


# -- parts -----------------------------------------------------------------------------------------------------------


def _parts(path: Path, head: GgufFile) -> tuple[Path, ...]:
    """All parts of a model, in order, each checked to be what it should be. Raises ConfigError naming the file."""
    count, number = _number(head, "split.count"), _number(head, "split.no")
    named = PART.match(path.name)
    if count <= 1:
        if named and int(named["count"]) > 1:
            raise ConfigError(
                f"model: {path} is named as a part of {int(named['count'])}, but is a whole file or a damaged part; "
                "if it is whole, give it another name"
            )
        return (path,)
    if count > PARTS_MAX or number >= count:
        raise ConfigError(f"model: {path} says that it is part {number + 1} of {count}; download it again")
    if not named:
        right = f"{path.stem}-{number + 1:05}-of-{count:05}.gguf"
        raise ConfigError(
            f"model: {path} is part {number + 1} of {count}, and llama.cpp finds the others by their names; name them "
            f"as they were, this one like {right}"
        )
    first = path.with_name(_name(named["name"], 0, count))
    if number:
        there = "" if first.exists() else " (it is missing: put it beside this one)"
        raise ConfigError(f"model: {path} is part {number + 1} of {count}; give the first one: {first}{there}")
    if path.name != first.name:
        raise ConfigError(f"model: {path} is part 1 of {count}, by another name; name it {first.name}")
    parts = tuple(path.with_name(_name(named["name"], i, count)) for i in range(count))
    missing = [part for part in parts if not part.exists()]
    if missing:
        names = ", ".join(part.name for part in missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        raise ConfigError(
            f"model: {path} is part 1 of {count}; {names} {'is' if len(missing) == 1 else 'are'} missing; put all "
            f"parts into {path.parent}"
        )
    total = _number(head, "split.tensors.count")
    names_seen = set(head.tensors)
    held = len(head.tensors)
    for i, part in enumerate(parts[1:], 1):
        other = _head(part)
        said = _number(other, "split.no"), _number(other, "split.count"), _number(other, "split.tensors.count")
        double = names_seen.intersection(other.tensors)
        if said != (i, count, total) or double:
            why = (
                f"it says that it is {_in_words(*said)}, the first part says {count} parts with {total}"
                if said != (i, count, total)
                else f"'{min(double)}' is in an earlier part too"
            )
            raise ConfigError(
                f"model: {part} belongs to another model than {path.name} ({why}); download {part.name} again"
            )
        names_seen |= other.tensors.keys()
        held += len(other.tensors)
    if total and held != total:
        raise ConfigError(
            f"model: the {count} parts of {path} hold {held} tensors of {total}: they are of different sets; download "
            "all of them again"
        )
    return parts


def _in_words(number: int, count: int, tensors: int) -> str:
    return f"part {number + 1} of {count} with {tensors} tensors in all" if count > 1 else "a whole model"


def _name(name: str, number: int, count: int) -> str:
    return f"{name}-{number + 1:05}-of-{count:05}.gguf"


def _number(head: GgufFile, key: str) -> int:
    value = head.values.get(key, 0)
    return value if isinstance(value, int) and value >= 0 else 0


# -- what it is for --------------------------------------------------------------------------------------------------


def _check_writes(path: Path, values: Mapping[str, Any]) -> None:
    """Raises ConfigError for models that do not write text one token after the other."""
    arch = str(values.get("general.architecture", ""))
    pooling = values.get(f"{arch}.pooling_type", 0)
    if pooling:
        raise ConfigError(
            f"model: {path} is made for embeddings or for ranking (its file has a pooling type), and writes no text; "
            "take a chat model"
        )
    if arch in ENCODERS or values.get(f"{arch}.attention.causal", True) is False:
        raise not_causal(path)


def _check_tokens(path: Path, head: GgufFile) -> None:
    """Raises ConfigError for vocabularies at which llama.cpp would abort, now or at a player's text."""
    if head.repeated:
        raise ConfigError(
            f"model: {path} has the token '{head.repeated}' twice in its vocabulary, which llama.cpp does not take; "
            "take another conversion of the model"
        )
    if head.values.get("tokenizer.ggml.model") == "llama" and head.byte_tokens < BYTES:
        raise ConfigError(
            f"model: {path} has tokens for {head.byte_tokens} of {BYTES} bytes, so llama.cpp would abort at a "
            "character that its vocabulary lacks; take another conversion of the model"
        )


def tokenizer_doubt(values: Mapping[str, Any]) -> tuple[str, str]:
    """The reason why the file's tokenizer may split text wrongly, and the remedy; both are empty when nothing is wrong.

    Files from before May 2024 do not name the rule. llama.cpp then takes a default one, and the model reads tokens that
    it was not trained on.
    """
    if values.get("tokenizer.ggml.model") != "gpt2" or values.get(PRE):
        return "", ""
    return (
        f"the file does not say by which rule its tokenizer splits text ({PRE}), so words may be split wrongly",
        "take a newer conversion, or add the rule: pip install gguf; gguf-new-metadata --pre-tokenizer NAME old.gguf "
        f"new.gguf (NAME: {PRE_NAMES})",
    )


def not_causal(path: Path) -> ConfigError:
    """The error for models that look at what comes after a token, too."""
    return ConfigError(
        f"model: {path} reads a whole text at once (its attention is not causal), and does not write one token after "
        "the other; take a chat model"
    )


def no_numbers(path: Path) -> ConfigError:
    """The error for models whose answer to plain text is no number."""
    return ConfigError(
        f"model: {path} computes values that are no numbers (NaN or infinity), so nothing could be chosen; the file is "
        "damaged or was converted wrongly: download it again, or take another conversion"
    )


def recurrent(path: Path) -> ConfigError:
    """The error for models with a state that cannot be cut back."""
    return ConfigError(
        f"model: {path} is recurrent (as Mamba or RWKV, wholly or in part): its memory of a sequence cannot be cut "
        "back, which npcd does after every intent; take a model with attention only"
    )
