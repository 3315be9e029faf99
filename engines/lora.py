"""Adapters (LoRA) as files: what one must be like to be used with a model, and how several become one.

llama.cpp takes an adapter's word for much and ends the process later, in the middle of a step; so everything is
checked here before it sees the file. A stack is composed when it is first asked for: with W + s1 B1 A1 + s2 B2 A2 the
ranks are put behind each other, A = [A1; A2], B = [s1 B1, s2 B2], and the stack costs a step what one adapter costs.

llama.cpp loads a copy with the rank padded with zeros to a multiple of 32, because its fast paths on CPUs take only
such rows. Measured on the shipped model: with rank 56 as it is, a step takes 2.5 times as long as with rank 8; padded
to 64 it takes less.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from core.errors import CallerError, ConfigError
from core.files import from_home
from engines.gguf_file import FLOATS, NVFP4, GgufFile, TensorAt, blocks, read_gguf, write_gguf

JOIN = "+"  # between the names of a stack
A, B = ".lora_a", ".lora_b"
RANK_STEP = 32
F16_MAX = float(np.finfo(np.float16).max)
INVOCATION = "adapter.alora.invocation_tokens"
STRENGTH_MAX = 4.0
Pairs = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """LoRA adapters, which archetypes name."""

    folder: str = ""
    """Folder with adapters as GGUF files, each named as its file; empty: there are none."""
    loaded_max: int = 8
    """Adapters that are in the model's memory at the same time; beyond that the one that is unused longest is evicted.
    """
    rank_max: int = 64
    """Highest rank of an adapter; of a stack of adapters, the highest sum of ranks. From 1 to 1024."""
    stacks_max: int = 32
    """Different stacks (combinations) of adapters that worlds may use."""
    activated: tuple[str, ...] = ()
    """Adapters that apply only from the end of an NPC's trunk on, so that the trunk's KV is the base model's. Adapters
    whose file has an invocation (aLoRA) are like this by themselves: they apply from their last invocation in the tail
    on.
    """
    strength: tuple[str, ...] = ()
    """How strongly adapters apply, as `NAME=NUMBER`: 1 is as trained, 0.5 half, -1 the opposite. From -4 to 4. Adapters
    that are not listed have 1.
    """


@dataclass(slots=True, eq=False)
class Adapter:
    """One adapter that may be loaded. `sha` names it by its content; `file`, what llama.cpp loads, has no name and is
    open as long as the adapter is known, so that it can be loaded again however often. `invocation` are the tokens
    that turn an aLoRA on.
    """

    name: str
    sha: str
    rank: int
    activated: bool
    file: BinaryIO = field(repr=False)
    parts: tuple[str, ...] = ()
    invocation: tuple[int, ...] = ()

    @property
    def trunk_sha(self) -> str:
        """The adapter that a trunk's KV is computed with; empty (the base model) for an activated one."""
        return "" if self.activated else self.sha


class Adapters:
    """The adapters of a folder, checked against a model, and the stacks that were asked for. Any thread may call."""

    def __init__(self, settings: AdapterSettings, model: Path) -> None:
        """Raises ConfigError naming the file, when one of them cannot be used with the model."""
        self.settings = settings
        self._lock = threading.Lock()
        self._by_name: dict[str, Adapter] = {}
        self._by_sha: dict[str, Adapter] = {}
        self._heads: dict[str, GgufFile] = {}
        if not settings.folder:
            return
        folder = check_folder(settings)
        self._strengths = strengths(settings)
        self._base = read_gguf(model)
        for path in sorted(folder.glob("*.gguf")):
            self._add_file(path)

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def names(self) -> list[str]:
        """Of all single adapters."""
        return sorted(name for name, adapter in self._by_name.items() if not adapter.parts)

    def of_sha(self, sha: str) -> Adapter:
        """The adapter of that content, which someone has found before."""
        return self._by_sha[sha]

    def known(self, sha: str) -> bool:
        """True if an adapter of that content was found."""
        return sha in self._by_sha

    def find(self, name: str, where: str = "adapter") -> Adapter:
        """The adapter of that name, or a stack of several ("old+angry"), which is composed when it is first asked for.

        Reads and writes files then. Raises CallerError for `where` that says what is wrong.
        """
        with self._lock:
            found = self._by_name.get(name)
            if found is not None:
                return found
            parts = [part.strip() for part in name.split(JOIN)]
            for part in parts:
                if part not in self._heads:
                    known = ", ".join(self._heads) or "none (adapters.folder)"
                    raise CallerError(where, f"there is no adapter '{part}'; there are: {known}")
            return self._compose(parts, where)

    def _add_file(self, path: Path) -> None:
        head = read_gguf(path)
        rank = check(head, self._base, self.settings.rank_max)
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as read:
            for block in blocks(read):
                digest.update(block)
        strength = self._strengths.get(path.stem, 1.0)
        if strength != 1.0:
            digest.update(f"strength {strength!r}".encode())  # it computes another KV
        try:
            file = written(read_pairs(head, strength), str(head.values["general.architecture"]))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be copied for loading ({error.strerror})") from error
        invocation = invocation_of(head)
        activated = path.stem in self.settings.activated or bool(invocation)
        self._heads[path.stem] = head
        self._keep(Adapter(path.stem, digest.hexdigest(), rank, activated, file, invocation=invocation))

    def _compose(self, parts: Sequence[str], where: str) -> Adapter:
        stack = [self._by_name[part] for part in parts]
        rank = sum(adapter.rank for adapter in stack)
        if rank > self.settings.rank_max:
            raise CallerError(
                where, f"the ranks of {JOIN.join(parts)} sum to {rank}, the limit is {self.settings.rank_max}"
            )
        if len({adapter.activated for adapter in stack}) > 1:
            raise CallerError(where, f"{JOIN.join(parts)} are of two kinds: of some the trunk is the base model's")
        if sum(1 for adapter in self._by_name.values() if adapter.parts) >= self.settings.stacks_max:
            raise CallerError(where, f"there are {self.settings.stacks_max} stacks already")
        if len({adapter.invocation for adapter in stack}) > 1:
            raise CallerError(where, f"{JOIN.join(parts)} are turned on by different tokens")
        try:
            heads = [self._heads[part] for part in parts]
            pairs = compose([read_pairs(self._heads[part], self._strengths.get(part, 1.0)) for part in parts])
            file = written(pairs, str(heads[0].values["general.architecture"]))
        except (ConfigError, OSError) as error:
            raise CallerError(where, f"{JOIN.join(parts)} cannot be composed: {error}") from error
        sha = hashlib.blake2b(JOIN.join(adapter.sha for adapter in stack).encode(), digest_size=16).hexdigest()
        one = stack[0]
        return self._keep(Adapter(JOIN.join(parts), sha, rank, one.activated, file, tuple(parts), one.invocation))

    def _keep(self, adapter: Adapter) -> Adapter:
        self._by_name[adapter.name] = adapter
        self._by_sha.setdefault(adapter.sha, adapter)
        return adapter


def check_folder(settings: AdapterSettings) -> Path:
    """The folder of adapters. Raises ConfigError when it or a file's head cannot be read; reads no weights."""
    if settings.loaded_max < 1 or not 1 <= settings.rank_max <= 1024:
        raise ConfigError("adapters: loaded_max must be at least 1, rank_max 1 to 1024")
    folder = from_home(settings.folder, "adapters.folder")
    if not folder.is_dir():
        raise ConfigError(f"adapters.folder: {folder} is not a folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigError(f"adapters.folder: {folder} cannot be read; let npcd's user read it")
    files = sorted(folder.glob("*.gguf"))
    for path in files:
        read_gguf(path)
    there = {path.stem for path in files}
    for setting, named in (("activated", set(settings.activated)), ("strength", set(strengths(settings)))):
        if missing := sorted(named - there):
            raise ConfigError(f"adapters.{setting}: there is no '{missing[0]}' in {folder}")
    return folder


def strengths(settings: AdapterSettings) -> dict[str, float]:
    """The strengths by adapter. Raises ConfigError for what is no NAME=NUMBER, or outside the bounds."""
    found: dict[str, float] = {}
    for text in settings.strength:
        name, _, number = (part.strip() for part in text.rpartition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not abs(value) <= STRENGTH_MAX:
            raise ConfigError(
                f"adapters.strength: '{text}' must be NAME=NUMBER, from {-STRENGTH_MAX:g} to {STRENGTH_MAX:g}"
            )
        if name in found:
            raise ConfigError(f"adapters.strength: '{name}' is there twice; give one number")
        found[name] = value
    return found


def invocation_of(head: GgufFile) -> tuple[int, ...]:
    """The tokens that turn an adapter on, of an ordinary one none. Raises ConfigError for what cannot be tokens."""
    found = head.values.get(INVOCATION, ())
    if not isinstance(found, tuple) or not all(type(token) is int for token in found):
        raise ConfigError(f"{head.path}: {INVOCATION} must be an array of at most 64 tokens")
    return found


def check(head: GgufFile, base: GgufFile, rank_max: int) -> int:
    """The rank of an adapter that can be used with a model. Raises ConfigError that says why it cannot.

    Law: what passes neither fails nor aborts in llama.cpp, whatever else the file says.
    """
    path, values = head.path, head.values
    if values.get("general.type") != "adapter" or values.get("adapter.type") != "lora":
        raise ConfigError(
            f"{path}: not an adapter of the kind LoRA; convert it with llama.cpp's convert_lora_to_gguf.py"
        )
    own, wanted = values.get("general.architecture"), base.values.get("general.architecture")
    if own != wanted:
        raise ConfigError(f"{path}: made for the architecture '{own}', the model has '{wanted}'")
    alpha = values.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise ConfigError(f"{path}: adapter.lora.alpha is {alpha}, must be a number")
    names = targets(head)
    if not names:
        raise ConfigError(f"{path}: there is nothing in it")
    rank = 0
    for name in names:
        a, b = head.tensors.get(name + A), head.tensors.get(name + B)
        if a is None or b is None:
            raise ConfigError(f"{path}: '{name}' has one half only, {A} and {B} belong together")
        rank = max(rank, _check_pair(path, name, a, b, base))
    for name in head.tensors:
        # Sampling from logits that are no numbers is undefined in llama.cpp.
        if name.endswith((A, B)) and not np.isfinite(head.array(name)).all():
            raise ConfigError(f"{path}: in '{name}' there are values that are no numbers")
    if rank > rank_max:
        raise ConfigError(f"{path}: rank {rank}, the limit is {rank_max} (adapters.rank_max)")
    return rank


def _check_pair(path: Path, name: str, a: TensorAt, b: TensorAt, base: GgufFile) -> int:
    if name.endswith("token_embd.weight"):
        raise ConfigError(f"{path}: it changes '{name}', the embedding; npcd takes adapters of the layers only")
    weight = base.tensors.get(name)
    if weight is None or weight.kind == NVFP4:
        raise ConfigError(
            f"{path}: the model has no '{name}' that an adapter can change; was it made for another model?"
        )
    if not {a.kind, b.kind} <= FLOATS:
        raise ConfigError(f"{path}: '{name}' is quantised; f32, f16 and bf16 are taken")
    if len(weight.shape) < 2 or not len(weight.shape) == len(a.shape) == len(b.shape):
        raise ConfigError(f"{path}: '{name}' has {len(a.shape)} dimensions, the model's has {len(weight.shape)}")
    rank = a.shape[-2]
    fits = a.shape[-1] == weight.shape[-1] and b.shape[-2] == weight.shape[-2] and b.shape[-1] == rank
    if not rank or not fits or not a.shape[:-2] == b.shape[:-2] == weight.shape[:-2]:
        raise ConfigError(f"{path}: '{name}' is {b.shape} x {a.shape}, the model's is {weight.shape}")
    return rank


def targets(head: GgufFile) -> list[str]:
    """The tensors of the model that an adapter changes. Raises ConfigError for tensors that are none of its own."""
    names = {}
    for name in head.tensors:
        if name.endswith((A, B)):
            names[name.removesuffix(A).removesuffix(B)] = True
        elif not name.endswith("_norm.weight"):  # llama.cpp ignores those
            raise ConfigError(f"{head.path}: '{name}' is not part of a LoRA")
    return list(names)


def read_pairs(head: GgufFile, strength: float = 1.0) -> Pairs:
    """An adapter's matrices by the tensors that they change, with its scale and strength in B. Raises ConfigError."""
    alpha = float(head.values.get("adapter.lora.alpha", 0.0))
    pairs: Pairs = {}
    for name in targets(head):
        a, b = head.array(name + A), head.array(name + B)
        pairs[name] = a, b * np.float32(strength * (alpha / a.shape[-2] if alpha else 1.0))
    return pairs


def compose(stack: Sequence[Pairs]) -> Pairs:
    """One adapter that does what all of them do together: for every tensor the ranks behind each other."""
    composed: Pairs = {}
    for name in dict.fromkeys(name for pairs in stack for name in pairs):
        own = [pairs[name] for pairs in stack if name in pairs]
        composed[name] = np.concatenate([a for a, _ in own], axis=-2), np.concatenate([b for _, b in own], axis=-1)
    return composed


def filled(pairs: Pairs) -> Pairs:
    """The same with ranks that are multiples of 32: what is added is zero."""
    out: Pairs = {}
    for name, (a, b) in pairs.items():
        more = -a.shape[-2] % RANK_STEP
        still = [(0, 0)] * (a.ndim - 2)
        out[name] = np.pad(a, [*still, (0, more), (0, 0)]), np.pad(b, [*still, (0, 0), (0, more)])
    return out


def written(pairs: Pairs, architecture: str) -> BinaryIO:
    """An open file without a name that holds an adapter, as llama.cpp loads it fastest: in the temporary folder, or in
    memory where that has no room. Raises OSError.
    """
    ready = filled(pairs)
    try:
        return _into(tempfile.TemporaryFile(prefix="npcd-adapter-"), ready, architecture)
    except OSError:
        return _into(os.fdopen(os.memfd_create("npcd-adapter"), "w+b"), ready, architecture)


def _into(file: BinaryIO, pairs: Pairs, architecture: str) -> BinaryIO:
    """The file, with the adapter in it; it is closed when there is no room."""
    try:
        write_adapter(file, pairs, architecture)
        file.flush()
    except OSError:
        with contextlib.suppress(OSError):  # bytes that could not be written cannot be flushed
            file.close()
        raise
    return file


def write_adapter(file: BinaryIO, pairs: Pairs, architecture: str, alpha: float = 0.0) -> None:
    """Writes an adapter as f16, where the numbers allow it; with `alpha` 0 its scale is 1."""
    values: dict[str, str | float | int] = {
        "general.type": "adapter",
        "general.architecture": architecture,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }
    tensors = {f"{name}{half}": m for name, pair in pairs.items() for half, m in zip((A, B), pair, strict=True)}
    write_gguf(file, values, {n: m.astype(np.float16) if np.abs(m).max() < F16_MAX else m for n, m in tensors.items()})
