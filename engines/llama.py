"""llama.cpp behind StepEngine, through llama-cpp-python's low-level API. The only file that imports llama_cpp.

Owns: the model, one context, the batch arrays and the sampler chains. All of it is used on the engine thread only,
except LlamaVocab, which reads immutable parts of the model. Cancelling is not known here: the scheduler stops
planning a work.

What would abort the process inside the native library is asserted here first (see docs/decisions/0001), and positions
are checked against a book of our own, because an empty sequence takes any position in silence.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from core.choice import Tokens
from core.clock import Clock, now_ns
from core.errors import ConfigError, EngineFailed
from core.work import Sampling
from engines.base import PAD_LEN, Geometry, KvKind, Pick, StepPlan, StepResult, invoked_at, verify
from engines.lora import Adapters
from engines.machine import cores_here
from engines.model_file import ModelFile, look, not_causal, recurrent, refused
from engines.room import check_room, memory_free

_LIB = ctypes.PyDLL(llama_cpp.llama_cpp._lib._name)
# Calls of a few microseconds keep the interpreter lock (PyDLL): giving it up and taking it back costs more than they
# do.
_sample = _LIB.llama_sampler_sample
_sample.argtypes, _sample.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32], ctypes.c_int32
_seq_rm = _LIB.llama_memory_seq_rm
_seq_rm.argtypes, _seq_rm.restype = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32], ctypes.c_bool
_seq_cp = _LIB.llama_memory_seq_cp  # books only: the bytes move in the next decode
_seq_cp.argtypes, _seq_cp.restype = [ctypes.c_void_p, *[ctypes.c_int32] * 4], None
_pos_max = _LIB.llama_memory_seq_pos_max
_pos_max.argtypes, _pos_max.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.c_int32
_get_logits = _LIB.llama_get_logits
_get_logits.argtypes, _get_logits.restype = [ctypes.c_void_p], ctypes.c_void_p
_is_eog = _LIB.llama_vocab_is_eog
_is_eog.argtypes, _is_eog.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.c_bool
_attr = _LIB.llama_vocab_get_attr
_attr.argtypes, _attr.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.c_int

KV_TYPES = {"f16": 1, "q8_0": 8}  # as ggml numbers them
KV_BLOCK = 32  # values of q8_0 share a scale, so a head must be made of whole blocks
SEQUENCES_MAX = 256  # compiled into llama.cpp
# Settings that must be within bounds. -1 layers on the GPU: all of them.
NUMBERS = (
    ("context_len", 1, 1 << 20), ("batch_len", 1, 1 << 16), ("threads", 0, 1024), ("gpu_layers", -1, 10_000),
)  # fmt: skip
UNKNOWN, CONTROL, ADDED, BYTE = 1 << 0, 1 << 3, 1 << 4, 1 << 5  # LLAMA_TOKEN_ATTR_...; ADDED is _USER_DEFINED


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """How the engine is set up. `sequences` x `context_len` tokens of KV are allocated at start.

    "auto" and 0 are for engines/tune.py, which measures; an engine opened without it takes the first choice.
    """

    model: Path
    sequences: int = 255
    context_len: int = 2048
    batch_len: int = 2048
    micro_len: int = 512
    threads: int = 0  # 0: cores - 1, at least 1
    flash_attention: str = "auto"  # "off", "on"
    weights: str = "auto"  # "file": as they are in the file; "f16": converted when loaded
    kv_type: str = "f16"  # "q8_0": about half the bytes; needs flash attention, and steps take longer on a CPU
    gpu_layers: int = 0


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a GGUF file says of itself. `sha256` is of the whole file; `license` may be empty."""

    name: str
    sha256: str
    architecture: str
    license: str
    context_trained: int
    parameters: int
    chat_template: str


def flash(settings: LlamaSettings) -> bool:
    """Whether attention is llama.cpp's flash attention; what nobody chose is what the KV type needs."""
    return settings.flash_attention == "on" or (settings.flash_attention == "auto" and settings.kv_type != "f16")


def check_settings(settings: LlamaSettings) -> None:
    """Raises ConfigError for values that there are not."""
    if not 2 <= settings.sequences <= SEQUENCES_MAX:
        raise ConfigError(f"engine.sequences: {settings.sequences}, must be 2 to {SEQUENCES_MAX}")
    if not 1 <= settings.micro_len <= settings.batch_len:
        raise ConfigError(
            f"engine.micro_len: {settings.micro_len}, must be 1 to engine.batch_len ({settings.batch_len})"
        )
    for name, least, most in NUMBERS:
        if not least <= getattr(settings, name) <= most:
            raise ConfigError(f"engine.{name}: {getattr(settings, name)}, must be {least} to {most}")
    for name, allowed in (
        ("flash_attention", ("auto", "off", "on")),
        ("weights", ("auto", "file", "f16")),
        ("kv_type", tuple(KV_TYPES)),
    ):
        if getattr(settings, name) not in allowed:
            raise ConfigError(f"engine.{name}: '{getattr(settings, name)}', must be {', '.join(allowed)}")
    if settings.kv_type != "f16" and not flash(settings):
        raise ConfigError(f"engine.kv_type: {settings.kv_type} needs engine.flash_attention = 'on' (or 'auto')")


def default_threads() -> int:
    """Cores that this process may use - 1, at least 1: with every core spinning in barriers the event loop would wait
    for the model.
    """
    return max(1, cores_here().usable - 1)


class LlamaVocab:
    """The tokens of a loaded model; immutable, any thread may call."""

    def __init__(self, model: Any) -> None:
        self._model = model  # keeps the owner of the native vocabulary alive
        vocab = llama_cpp.llama_model_get_vocab(model)
        assert vocab, "a loaded model has a vocabulary"
        self._vocab = vocab
        self.size = int(llama_cpp.llama_vocab_n_tokens(vocab))
        self.eog_ids = frozenset(i for i in range(self.size) if _is_eog(vocab, i))
        wants_bos = bool(llama_cpp.llama_vocab_get_add_bos(vocab))
        self.bos_id = int(llama_cpp.llama_vocab_bos(vocab)) if wants_bos else -1
        self.bos_text = self.written(int(llama_cpp.llama_vocab_bos(vocab)))
        self.eos_text = self.written(int(llama_cpp.llama_vocab_eos(vocab)))
        self._pieces: list[bytes | None] = [None] * self.size
        kinds = {i: kind for i in range(self.size) if (kind := _attr(vocab, i) & (UNKNOWN | CONTROL | ADDED | BYTE))}
        texts = ((i, self.written(i)) for i in kinds)
        # What must not come out of text that only looks like it. Runs of spaces and line breaks (Gemma) are no markup.
        self._not_text = {i: text for i, text in texts if len(text) > 1 and text.strip("\u2581 \t\r\n")}
        self._markers = frozenset(i for i in self._not_text if kinds[i] & (CONTROL | ADDED))
        self._anchor = ""
        self._anchor = self._find_anchor()

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text as it continues other text; control tokens written in it come out as ordinary text."""
        tokens = self._continued(text, special=False)
        if self._not_text.keys().isdisjoint(tokens):
            return tokens
        # llama.cpp matches added tokens in any text, and sentencepiece may merge its way to a control token ("</" and
        # "s>"): such text is broken up after its first character. Bytes and unknown characters are what they should be.
        for token in tokens:
            at = text.find(self._not_text[token]) if token in self._not_text else -1
            if at >= 0:
                return self.encode(text[: at + 1]) + self.encode(text[at + 1 :])
        return tokens

    def markup(self, text: str) -> list[int]:
        """Tokens of a template's own text as it continues other text; control tokens written in it are meant."""
        return self._continued(text, special=True)

    @lru_cache(maxsize=256)  # noqa: B019 - one vocabulary per process, and marks are few
    def control(self, text: str) -> int:
        """The id of the control token written `text`, or -1 when the model has none."""
        tokens = self._tokenize(text, special=True)
        if len(tokens) == 1 and llama_cpp.llama_vocab_is_control(self._vocab, tokens[0]):
            return tokens[0]
        return -1

    def written(self, token: int) -> str:
        """How a token is written in templates; empty for -1."""
        if token < 0:
            return ""
        return (llama_cpp.llama_vocab_get_text(self._vocab, token) or b"").decode("utf-8", "replace")

    def whole(self, text: str) -> int:
        """The id of the token that is written exactly so, of whatever kind; -1 when there is none. Looks at all."""
        raw, of = text.encode(), llama_cpp.llama_vocab_get_text
        return next((t for t in range(self.size) if of(self._vocab, t) == raw), -1)

    def is_marker(self, token: int) -> bool:
        """Whether it is a control or added token."""
        return token in self._markers

    def piece(self, token: int) -> bytes:
        """The bytes of one token; empty for control tokens."""
        known = self._pieces[token]
        if known is None:
            room = 256
            buffer = ctypes.create_string_buffer(room)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, False)
            if length < 0:
                room = -length
                buffer = ctypes.create_string_buffer(room)
                length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, False)
            known = self._pieces[token] = buffer.raw[: max(length, 0)]
        return known

    @property
    def special_ids(self) -> tuple[int, ...]:
        """What begins, ends and separates texts: BOS, EOS, EOT, then all tokens that end a generation."""
        named = (llama_cpp.llama_vocab_bos, llama_cpp.llama_vocab_eos, llama_cpp.llama_vocab_eot)
        return (*(int(of(self._vocab)) for of in named), self.bos_id, *sorted(self.eog_ids))

    def digest(self) -> str:
        """A hash of all tokens in order, with their kinds."""
        found = hashlib.sha256()
        for token in range(self.size):
            text = llama_cpp.llama_vocab_get_text(self._vocab, token) or b""
            found.update(b"%d %d %b\0" % (token, _attr(self._vocab, token), text))
        return found.hexdigest()

    def _find_anchor(self) -> str:
        """What to put before a text so that it is taken as the middle of one; empty when nothing is needed.

        Tokenizers with a "space prefix" (sentencepiece) put a space before every text, as if it were the first. Behind
        a character that merges with nothing they do not.
        """
        if b"".join(map(self.piece, self._continued("a", special=False))) == b"a":
            return ""
        return "\x01"

    def _continued(self, text: str, special: bool) -> list[int]:
        if not self._anchor or not text:
            return self._tokenize(text, special)
        before = len(self._tokenize(self._anchor, special))
        return self._tokenize(self._anchor + text, special)[before:]

    def _tokenize(self, text: str, special: bool) -> list[int]:
        raw = text.encode("utf-8", "replace")
        room = len(raw) + 8
        tokens = (ctypes.c_int32 * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), tokens, room, False, special)
        if count < 0:
            room = -count
            tokens = (ctypes.c_int32 * room)()
            count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), tokens, room, False, special)
        assert count >= 0, f"tokenizer answered {count}"
        return list(tokens[:count])


_MEANT = b"using full-size SWA cache"  # a warning of llama.cpp about what we ask for (see _open)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _native_log(level: int, text: bytes, _user: object) -> None:
    if level not in (3, 4) or _MEANT in text:  # warnings and errors; the rest is chatter
        return
    line = text.decode("utf-8", "replace").rstrip()
    if _native_errors is not None:
        _native_errors.append(line)
    elif _native_lines is not None:
        _native_lines(line)


_native_lines: Callable[[str], None] | None = None
_native_errors: list[str] | None = None  # what it says while a file is read


def send_native_log_to(lines: Callable[[str], None] | None) -> None:
    """Warnings and errors of the native library go to `lines`, from whatever thread makes them; None drops all of it.

    Use None while serving: llama.cpp writes dozens of debug lines whenever it moves KV between sequences, and each
    would take the interpreter lock only to be thrown away. What fails is still told by return codes.
    """
    global _native_lines
    _native_lines = lines
    # A C function that takes an int, returns, and does nothing else: it ignores the arguments it does not know.
    silent = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p)
    llama_cpp.llama_log_set(ctypes.cast(silent, llama_cpp.llama_log_callback) if lines is None else _native_log, None)


def _load_model(path: Path, gpu_layers: int, vocab_only: bool = False) -> Any:
    """A native model. Raises ConfigError naming the file, why llama.cpp refuses it, and what to do."""
    global _native_errors
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.vocab_only = vocab_only
    before, _native_errors = _native_lines, []
    llama_cpp.llama_log_set(_native_log, None)
    try:
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        said = _native_errors
    finally:
        _native_errors = None
        send_native_log_to(before)
    if not model:
        raise refused(path, said, llama_cpp.__version__)
    if before is not None:
        for line in said:
            before(line)
    return model


def _load_as_f16(path: Path, gpu_layers: int) -> tuple[Any, str]:
    """A native model whose matrices are f16, from a converted copy that is gone from the disk again once it is
    mapped. Where no copy can be made, the model as it is in the file, and why.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="npcd-f16-", ignore_cleanup_errors=True) as folder:
            copy = Path(folder) / "model.gguf"
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_F16
            params.allow_requantize = True
            code = llama_cpp.llama_model_quantize(str(path).encode(), str(copy).encode(), ctypes.byref(params))
            if code == 0:
                with contextlib.suppress(ConfigError):  # the disk became full as it was closed
                    return _load_model(copy, gpu_layers), ""
            free_mib = shutil.disk_usage(folder).free >> 20
            why = f"llama.cpp could not write a copy with f16 to {Path(folder).parent}, where {free_mib} MiB are free"
    except OSError as error:
        why = f"there is no temporary folder for a copy with f16 ({error.strerror or error})"
    return _load_model(path, gpu_layers), f"{why}; make room, or set TMPDIR to a folder with room"


def _text(write: Callable[[Any, int], int]) -> str:
    """What a function of llama.cpp writes into a buffer, however long it is; empty when it has nothing to say."""
    room = 4096
    while True:
        buffer = ctypes.create_string_buffer(room)
        length = write(buffer, room)
        if length < room:
            return buffer.value.decode("utf-8", "replace") if length >= 0 else ""
        room = length + 1


def _meta(model: Any, key: str) -> str:
    """A value that the file has under a key; empty when it has none."""
    return _text(partial(llama_cpp.llama_model_meta_val_str, model, key.encode()))


def _card(model: Any, file: ModelFile) -> ModelCard:
    return ModelCard(
        name=_meta(model, "general.name") or file.parts[0].stem,
        sha256=file.sha256(),
        architecture=_meta(model, "general.architecture"),
        license=_meta(model, "general.license"),
        context_trained=int(llama_cpp.llama_model_n_ctx_train(model)),
        parameters=int(llama_cpp.llama_model_n_params(model)),
        chat_template=_meta(model, "tokenizer.chat_template"),
    )


def _check_kind(model: Any, path: Path) -> None:
    """Raises ConfigError for models whose sequences cannot be cut back to an earlier length, or that do not write."""
    if llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model):
        raise recurrent(path)
    if llama_cpp.llama_model_is_diffusion(model):
        raise not_causal(path)
    if llama_cpp.llama_vocab_type(llama_cpp.llama_model_get_vocab(model)) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
        raise ConfigError(f"model: {path} has no tokenizer in it; take a file that was converted with one")
    if llama_cpp.llama_model_has_encoder(model) or not llama_cpp.llama_model_has_decoder(model):
        raise ConfigError(f"model: {path} is no text generator (it has an encoder, or no decoder); take a chat model")


def _head_lens(model: Any) -> tuple[int, ...]:
    """How many values a head of keys and one of values have; of another length where attention has a window."""
    arch, usual = _meta(model, "general.architecture"), _usual_head_len(model)
    said = [_meta(model, f"{arch}.attention.{of}_length{where}") for where in ("", "_swa") for of in ("key", "value")]
    return tuple(int(text) if text.isdigit() else usual for text in said[:2]) + tuple(
        int(text) for text in said[2:] if text.isdigit()
    )


def _usual_head_len(model: Any) -> int:
    return int(llama_cpp.llama_model_n_embd(model)) // max(1, int(llama_cpp.llama_model_n_head(model)))


def _check_kv_type(model: Any, settings: LlamaSettings) -> None:
    """Raises ConfigError for a KV type whose blocks do not fit the model's heads: llama.cpp would abort."""
    wrong = [length for length in _head_lens(model) if length % KV_BLOCK]
    if settings.kv_type != "f16" and wrong:
        raise ConfigError(
            f"engine.kv_type: {settings.kv_type} needs heads of a multiple of {KV_BLOCK} values, those of "
            f"{settings.model.name} have {wrong[0]}; take f16"
        )


def load_vocab(path: Path) -> LlamaVocab:
    """Only the tokenizer of a GGUF file. Raises ConfigError."""
    return read_file(path)[1]


def read_file(path: Path) -> tuple[dict[str, str], LlamaVocab]:
    """What a GGUF file says of itself (its plain values, by their keys) and its tokenizer; no weights are read.

    Raises ConfigError for files that LlamaEngine would refuse.
    """
    look(path)
    model = _load_model(path, 0, vocab_only=True)
    _check_kind(model, path)
    said: dict[str, str] = {}
    for i in range(llama_cpp.llama_model_meta_count(model)):
        key = _text(partial(llama_cpp.llama_model_meta_key_by_index, model, i))
        said[key] = _text(partial(llama_cpp.llama_model_meta_val_str_by_index, model, i))
    return said, LlamaVocab(model)


def open_draft(path: Path, target: LlamaEngine, sequences: int) -> LlamaEngine:
    """A small model that guesses for `target`. Raises ConfigError unless both have the same tokens."""
    settings = target.settings
    check_vocabulary(path, load_vocab(path), settings.model, target.vocab)
    # "auto" was settled for the target; a draft is read as it is in its file.
    return LlamaEngine(replace(settings, model=path, sequences=sequences, weights="file", kv_type="f16"))


def check_vocabulary(path: Path, theirs: LlamaVocab, model: Path, ours: LlamaVocab) -> None:
    """Raises ConfigError unless the tokens of the draft model at `path` are the model's."""
    wrong = ""
    if theirs.size != ours.size:
        wrong = f"it has {theirs.size} tokens, the model {ours.size}"
    elif theirs.special_ids != ours.special_ids:
        wrong = f"its special tokens are {theirs.special_ids}, the model's {ours.special_ids}"
    elif theirs.digest() != ours.digest():
        at = next((t for t in range(ours.size) if theirs.written(t) != ours.written(t)), -1)
        wrong = (
            f"token {at} is '{theirs.written(at)}', in the model '{ours.written(at)}'" if at >= 0 else "kinds differ"
        )
    if wrong:
        raise ConfigError(
            f"speculation.draft_model: {path} has another vocabulary than {model} ({wrong}), so its guesses "
            "would mean something else; take a draft that was made for this model"
        )


def built_with() -> frozenset[str]:
    """The processor features that this llama.cpp was compiled for, as it names them: AVX2, AVX512, NEON, ..."""
    text = (llama_cpp.llama_print_system_info() or b"").decode("utf-8", "replace")
    pairs = (part.rpartition(":")[2].partition("=") for part in text.split("|"))
    return frozenset(name.strip() for name, _, value in pairs if value.strip() == "1")


@dataclass(slots=True)
class _Filled:
    """What the batch holds: tokens in all; per slice its sequence and number of tokens; the places in the batch that
    want logits; and who picks how: (slice, row of logits). `single`: one token per slice, and all pick. `drafted`: the
    same with the sampler and the guesses, whose rows follow each other.
    """

    tokens: int
    seqs: NDArray[np.int64]
    lengths: NDArray[np.int64]
    wanted: list[int]
    single: bool
    greedy: list[tuple[int, int]] = field(default_factory=list)
    drawn: list[tuple[int, int, int]] = field(default_factory=list)  # and the sampler
    masked: dict[int, tuple[Tokens, list[tuple[int, int]]]] = field(default_factory=dict)
    drafted: list[tuple[int, int, int, Tokens]] = field(default_factory=list)
    rows: int = 0

    def add(self, place: int, pick: Pick, drafts: Tokens | None = None) -> None:
        """One more slice that picks."""
        row = self.rows
        if drafts is not None:
            assert pick.allowed is None, "a choice is not drafted"
            self.rows += 1 + len(drafts)
            self.drafted.append((place, row, pick.sampler, drafts))
            return
        self.rows += 1
        if pick.allowed is not None:
            self.masked.setdefault(id(pick.allowed), (pick.allowed, []))[1].append((place, row))
        elif pick.sampler >= 0:
            self.drawn.append((place, row, pick.sampler))
        else:
            self.greedy.append((place, row))


class LlamaEngine:
    """A StepEngine on one llama.cpp context with `sequences` independent KV streams."""

    def __init__(self, settings: LlamaSettings, adapters: Adapters | None = None) -> None:
        """Raises ConfigError naming the setting, the model or the adapter that is wrong."""
        check_settings(settings)
        self.settings = settings  # weights: what they are
        self.weights_why = ""  # why they are not f16, where f16 was wanted
        self._file = look(settings.model)
        if settings.weights == "f16":
            self._model, self.weights_why = _load_as_f16(settings.model, settings.gpu_layers)
            if self.weights_why:
                self.settings = replace(settings, weights="file")
        else:
            self._model = _load_model(settings.model, settings.gpu_layers)
        _check_kind(self._model, settings.model)
        _check_kv_type(self._model, settings)
        self.vocab = LlamaVocab(self._model)
        self.threads = settings.threads or default_threads()
        # One sequence more than promised: scratch, for flushing copies that llama.cpp has put off (see _settle).
        self._scratch = min(settings.sequences, SEQUENCES_MAX - 1)
        self.geometry = Geometry(
            self._scratch, settings.context_len, settings.batch_len, settings.micro_len, self.vocab.size
        )
        self._samplers: dict[int, Any] = {}
        self._next_sampler = 0
        self._filled: _Filled | None = None  # what the batch holds
        self._context: Any = None
        self._adapters = adapters
        self._loras: dict[str, Any] = {}  # in memory, by content hash; the one used last is last
        self._used = ""  # the one that the context has
        self.adapters_loaded = 0
        self.adapters_dropped = 0
        self.adapters_switched = 0
        self._check_room()
        self._open()
        n = settings.batch_len
        self._token = np.zeros(n, np.int32)
        self._pos = np.zeros(n, np.int32)
        self._n_seq_id = np.ones(n, np.int32)
        self._seq = np.zeros(n, np.int32)
        self._wanted = np.zeros(n, np.int8)
        self._steps = np.arange(n, dtype=np.int32)
        # Every token has one sequence: its pointer is aimed once at its place in `_seq`.
        places = (ctypes.POINTER(ctypes.c_int32) * n)()
        base = self._seq.ctypes.data
        for i in range(n):
            places[i] = ctypes.cast(base + 4 * i, ctypes.POINTER(ctypes.c_int32))
        self._places = places
        self._batch = llama_cpp.llama_batch(
            0,
            self._token.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            None,
            self._pos.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            self._n_seq_id.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            ctypes.cast(places, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    @cached_property
    def card(self) -> ModelCard:
        """What the file says of itself. The first call reads all of it, for its hash."""
        return _card(self._model, self._file)

    @property
    def name(self) -> str:
        """Library and version."""
        return f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"

    @property
    def clock(self) -> Clock:
        """The process's clock."""
        return now_ns

    @property
    def kv_kind(self) -> KvKind:
        """Of this model with these settings, as this llama.cpp writes it."""
        model, s = self._model, self.settings
        shape = (
            f"{llama_cpp.llama_model_n_layer(model)} layers, {llama_cpp.llama_model_n_embd(model)} wide, "
            f"{llama_cpp.llama_model_n_head_kv(model)} heads of {_head_lens(model)}, "
            f"llama-cpp-python {llama_cpp.__version__}"
        )
        return KvKind(f"{self.card.sha256} {s.weights}", s.kv_type, "flash" if flash(s) else "plain", shape)

    # -- steps -------------------------------------------------------------------------------------------------

    def step(self, plan: StepPlan) -> StepResult:
        """Decodes all slices in one call and picks a token where one was asked for."""
        assert plan.slices, "an empty step"
        if plan.adapter != self._used:
            self._use(plan.adapter)
        filled = self._filled
        if plan.onward is None or filled is None or not filled.single:
            filled = self._fill(plan)
        else:
            self._fill_onward(filled, plan.onward)
        self._decode(filled.tokens)
        self._book[filled.seqs] += filled.lengths
        self._filled = filled
        return self._pick(filled)

    def _fill(self, plan: StepPlan) -> _Filled:
        """Writes a plan into the batch. What llama.cpp would abort on, or silently accept, ends here."""
        slices = plan.slices
        lengths = np.asarray([len(s.tokens) for s in slices])
        seqs = np.asarray([s.seq for s in slices])
        starts = np.asarray([s.pos for s in slices])
        total = int(lengths.sum())
        assert seqs[0] >= 0 and seqs[-1] < self.geometry.sequences, f"no sequence {seqs[0]} or {seqs[-1]}"
        assert len(seqs) == 1 or (seqs[1:] > seqs[:-1]).all(), "slices must be sorted by sequence, none twice"
        assert lengths.min() > 0 and total <= self.settings.batch_len, "a step takes 1 to batch_len tokens"
        held = self._book[seqs]
        assert (starts == held).all(), f"sequences {seqs} hold {held} tokens, the plan says {starts}"
        assert (starts + lengths).max() <= self.settings.context_len, "a sequence would outgrow its context"
        ends = lengths.cumsum()
        self._token[:total] = (
            [s.tokens[0] for s in slices] if total == len(slices) else np.concatenate([s.tokens for s in slices])
        )
        self._pos[:total] = np.repeat(starts - ends + lengths, lengths) + self._steps[:total]
        self._seq[:total] = np.repeat(seqs, lengths)
        self._wanted[:total] = 0
        wanted: list[int] = []
        for s, end in zip(slices, ends.tolist(), strict=True):
            if s.pick is not None:
                assert s.drafts < len(s.tokens), "drafts come after a token that is known"
                wanted += range(end - 1 - s.drafts, end) if s.drafts else (end - 1,)
        self._wanted[wanted] = 1
        taken = self._token[:total]
        assert taken.min() >= 0 and taken.max() < self.vocab.size, "token id out of range"
        filled = _Filled(total, seqs, lengths, wanted, total == len(slices) == len(wanted))
        for i, s in enumerate(slices):
            if s.pick is not None:
                filled.add(i, s.pick, s.tokens[-s.drafts :] if s.drafts else None)
        return filled

    def _fill_onward(self, filled: _Filled, tokens: Tokens) -> None:
        """The batch still holds the step before: every position moves by one, and the tokens are new."""
        count = filled.tokens
        assert len(tokens) == count, f"{len(tokens)} tokens for {count} sequences"
        positions = self._pos[:count]
        positions += 1
        held = self._book[filled.seqs]
        assert (positions == held).all(), f"sequences {filled.seqs} hold {held} tokens, the plan says {positions}"
        assert int(positions.max()) < self.settings.context_len, "a sequence would outgrow its context"
        self._token[:count] = tokens

    def _decode(self, count: int) -> None:
        self._batch.n_tokens = count
        code = llama_cpp.llama_decode(self._context, self._batch)
        if code != 0:
            raise EngineFailed(f"llama_decode answered {code}")
        if self.settings.gpu_layers:
            llama_cpp.llama_synchronize(self._context)  # on a CPU the decode is over when it returns
        self._unsettled.clear()

    def _pick(self, filled: _Filled) -> StepResult:
        began = time.perf_counter_ns()
        wanted, greedy = filled.wanted, filled.greedy
        picked = [-1] * len(filled.seqs)
        probability = [0.0] * len(filled.seqs)
        verified: dict[int, list[int]] = {}
        if wanted:
            address = _get_logits(self._context)
            if not address:
                raise EngineFailed("no logits after a decode")
            n = len(wanted) * self.vocab.size
            floats: Any = (ctypes.c_float * n).from_address(address)
            logits = np.frombuffer(floats, np.float32).reshape(len(wanted), -1)
            for i, row, sampler in filled.drawn:
                picked[i] = int(_sample(self._samplers[sampler], self._context, wanted[row]))
            if len(greedy) == len(picked):
                picked = logits.argmax(axis=1).tolist()
            elif greedy:
                rows = logits if len(greedy) == len(wanted) else logits[[r for _, r in greedy]]
                for (i, _), token in zip(greedy, rows.argmax(axis=1).tolist(), strict=True):
                    picked[i] = token
            for allowed, places in filled.masked.values():
                tokens, sure = likeliest(logits[[r for _, r in places]][:, allowed], allowed)
                for (i, _), token, p in zip(places, tokens, sure, strict=True):
                    picked[i], probability[i] = int(token), float(p)
            for i, row, sampler, drafts in filled.drafted:
                verified[i] = verify(drafts, partial(self._pick_row, logits, wanted, row, sampler))
                picked[i] = verified[i][0]
        return StepResult(picked, probability, time.perf_counter_ns() - began, verified)

    def _pick_row(self, logits: NDArray[np.float32], wanted: list[int], first: int, sampler: int, right: int) -> int:
        """The token after `right` drafts, by the chain or the likeliest."""
        row = first + right
        if sampler >= 0:
            return int(_sample(self._samplers[sampler], self._context, wanted[row]))
        return int(logits[row].argmax())

    # -- sequences ---------------------------------------------------------------------------------------------

    def copy(self, src: int, dst: int) -> None:
        """Makes dst equal to src, whole."""
        assert src != dst, "a sequence cannot be copied onto itself"
        self._cut(dst, 0)
        if self._book[src]:
            # llama.cpp aborts on a partial copy between streams, so always the whole one; trim() cuts it.
            _seq_cp(self._memory, src, dst, -1, -1)
            # The bytes move only when the next decode begins.
            self._unsettled |= {src, dst}
        self._book[dst] = self._book[src]

    def trim(self, seq: int, length: int) -> None:
        """Cuts the sequence back to its first `length` tokens."""
        assert 0 <= length <= self._book[seq], f"sequence {seq} holds {self._book[seq]} tokens, cannot keep {length}"
        if length < self._book[seq]:
            self._cut(seq, length)
            self._book[seq] = length

    def length(self, seq: int) -> int:
        """Tokens in the sequence, as llama.cpp counts them."""
        return int(_pos_max(self._memory, seq)) + 1

    def store(self, seq: int) -> bytes:
        """The sequence's KV as llama.cpp writes it."""
        self._settle(seq)
        size = int(llama_cpp.llama_state_seq_get_size(self._context, seq))
        buffer = (ctypes.c_uint8 * size)()
        written = int(llama_cpp.llama_state_seq_get_data(self._context, buffer, size, seq))
        if written != size:
            raise EngineFailed(f"storing sequence {seq} gave {written} of {size} bytes")
        return bytes(buffer)

    def load(self, seq: int, blob: bytes) -> bool:
        """Puts stored bytes into the sequence; False and an empty sequence when llama.cpp refuses them.

        llama.cpp finds truncated bytes and another model's bytes, but not a flipped bit: callers verify a checksum
        first.
        """
        self._settle(seq)
        self._cut(seq, 0)
        # The library only reads, so it may read the bytes where they are.
        buffer = ctypes.cast(ctypes.c_char_p(blob), ctypes.POINTER(ctypes.c_uint8))
        read = int(llama_cpp.llama_state_seq_set_data(self._context, buffer, len(blob), seq))
        taken = 0 < read == len(blob)
        if not taken:
            self._cut(seq, 0)
        self._book[seq] = self.length(seq)
        return taken

    def _cut(self, seq: int, length: int) -> None:
        if not _seq_rm(self._memory, seq, length, -1):
            raise EngineFailed(f"sequence {seq} cannot be cut at {length}")

    def _settle(self, seq: int) -> None:
        """Makes copies to or from `seq` real, by a step on the scratch sequence."""
        if seq in self._unsettled:
            self._filled = None
            self._token[0], self._pos[0], self._seq[0], self._wanted[0] = 0, 0, self._scratch, 0
            self._decode(1)
            self._cut(self._scratch, 0)

    # -- adapters ----------------------------------------------------------------------------------------------

    def try_adapters(self) -> None:
        """Loads every single adapter once. Raises ConfigError naming the one that llama.cpp does not take."""
        adapters = self._adapters
        for name in adapters.names if adapters is not None else ():
            assert adapters is not None
            try:
                self._hold(adapters.find(name).sha)
            except EngineFailed as error:
                raise ConfigError(f"adapters.folder: {error}") from error

    def _use(self, sha: str) -> None:
        """Gives the context an adapter, or none. KV stays; the next decode takes about a millisecond more."""
        if sha:
            one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._hold(sha))
            code = llama_cpp.llama_set_adapters_lora(self._context, one, 1, (ctypes.c_float * 1)(1.0))
        else:
            code = llama_cpp.llama_set_adapters_lora(self._context, None, 0, None)
        if code != 0:
            raise EngineFailed(f"llama_set_adapters_lora answered {code}")
        self._used = sha
        self.adapters_switched += bool(sha)

    def adapter_from(self, adapter: str, tail: Tokens) -> int:
        """At the invocation that its file has, else at once."""
        assert self._adapters is not None, f"nobody has checked an adapter {adapter}"
        return invoked_at(tail, self._adapters.of_sha(adapter).invocation)

    def adapter_counts(self) -> dict[str, int]:
        """Empty without a folder of adapters."""
        if not self._adapters:
            return {}
        return {
            "loaded": self.adapters_loaded,
            "dropped": self.adapters_dropped,
            "switched": self.adapters_switched,
            "resident": len(self._loras),
        }

    def _hold(self, sha: str) -> Any:
        """The native adapter, loaded when it is not in memory; the one unused longest makes room."""
        adapters = self._adapters
        assert adapters is not None and adapters.known(sha), f"nobody has checked an adapter {sha}"
        lora = self._loras.pop(sha, None)
        if lora is None:
            while len(self._loras) >= adapters.settings.loaded_max:
                self._drop(next(iter(self._loras)))
            adapter = adapters.of_sha(sha)
            lora = llama_cpp.llama_adapter_lora_init(self._model, f"/dev/fd/{adapter.file.fileno()}".encode())
            if not lora:
                raise EngineFailed(f"llama.cpp cannot load the adapter '{adapter.name}'; the memory may be full")
            self.adapters_loaded += 1
        self._loras[sha] = lora
        return lora

    def _drop(self, sha: str) -> None:
        if sha == self._used:
            self._use("")  # the context's graph still points at it
        llama_cpp.llama_adapter_lora_free(self._loras.pop(sha))
        self.adapters_dropped += 1

    # -- samplers ----------------------------------------------------------------------------------------------

    def add_sampler(self, sampling: Sampling, recent: Sequence[int]) -> int:
        """A native chain: penalties, DRY against repeating, top-k, top-p, min-p, temperature, seeded draw."""
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        parts = []
        seen_len = max(sampling.repeat_last_n, sampling.unrepeat_last_n if sampling.unrepeat > 0 else 0)
        if sampling.top_k > 0 and sampling.repeat_penalty >= 1.0:
            # Penalties only push tokens down, so what top-k will keep is among these; to look up 128 k tokens in vain
            # takes three times as long as all the rest.
            parts.append(llama_cpp.llama_sampler_init_top_k(sampling.top_k + seen_len))
        parts += [
            llama_cpp.llama_sampler_init_penalties(
                self.vocab.size, sampling.repeat_last_n, sampling.repeat_penalty, 0.0, 0.0
            ),
            *self._unrepeating(sampling),
            llama_cpp.llama_sampler_init_top_k(sampling.top_k),
            llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
            llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
            llama_cpp.llama_sampler_init_temp(sampling.temperature),
            llama_cpp.llama_sampler_init_dist(sampling.seed & 0xFFFFFFFF),
        ]
        for part in parts:
            llama_cpp.llama_sampler_chain_add(chain, part)
        for token in recent[-seen_len:]:
            llama_cpp.llama_sampler_accept(chain, int(token))
        handle = self._next_sampler
        self._next_sampler += 1
        self._samplers[handle] = chain
        return handle

    def _unrepeating(self, sampling: Sampling) -> list[Any]:
        if sampling.unrepeat <= 0:
            return []
        nothing = ctypes.POINTER(ctypes.c_char_p)()
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        strength, base, last_n = sampling.unrepeat, sampling.unrepeat_base, sampling.unrepeat_last_n
        return [llama_cpp.llama_sampler_init_dry(vocab, strength, base, 1, last_n, nothing, 0)]

    def drop_sampler(self, sampler: int) -> None:
        """Frees a chain."""
        llama_cpp.llama_sampler_free(self._samplers.pop(sampler))

    # -- life --------------------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """A new context of the same geometry; every sequence is empty."""
        llama_cpp.llama_free(self._context)
        self._open()

    def close(self) -> None:
        """Frees samplers, context and model."""
        for chain in self._samplers.values():
            llama_cpp.llama_sampler_free(chain)
        self._samplers.clear()
        if self._context:
            llama_cpp.llama_free(self._context)
            self._context = None
            llama_cpp.llama_model_free(self._model)  # and the adapters with it
            self._loras.clear()

    def _check_room(self) -> None:
        """Raises ConfigError when the KV would not fit the memory. On a device llama.cpp itself says so."""
        free = memory_free()
        cells = (self._scratch + 1) * self.settings.context_len
        heads = max(llama_cpp.llama_model_n_head(self._model), llama_cpp.llama_model_n_head_kv(self._model))
        most = 4 * llama_cpp.llama_model_n_layer(self._model) * heads * sum(_head_lens(self._model)[:2])
        if self.settings.gpu_layers or not free or cells * most <= free:
            return  # by far
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = PAD_LEN, 1, 2, 2
        params.flash_attn_type = int(flash(self.settings))
        params.type_k = params.type_v = KV_TYPES[self.settings.kv_type]
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            return  # opening the real one will say what is wrong
        sizes = []
        for _ in range(2):
            token = (ctypes.c_int32 * 1)(0)
            code = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1))
            sizes.append(int(llama_cpp.llama_state_seq_get_size(context, 0)) if code == 0 else 0)
        llama_cpp.llama_free(context)
        check_room(self._scratch + 1, self.settings.context_len, sizes[1] - sizes[0], free)

    def _open(self) -> None:
        s = self.settings
        params = llama_cpp.llama_context_default_params()
        streams = self._scratch + 1
        params.n_ctx = -(-s.context_len // PAD_LEN) * PAD_LEN * streams  # llama.cpp pads every stream
        params.n_batch = s.batch_len
        params.n_ubatch = s.micro_len
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = self.threads
        # Branches are cut off and trunks copied at any length: layers with a sliding window keep all their cells too.
        params.swa_full = True
        # One stream per sequence: unified, every token would attend over the cells of all NPCs.
        params.kv_unified = False
        params.flash_attn_type = int(flash(s))
        params.type_k = params.type_v = KV_TYPES[s.kv_type]
        params.no_perf = True
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise ConfigError(
                f"engine: no memory for {streams} sequences of {s.context_len} tokens; "
                "lower engine.sequences or engine.context_len"
            )
        if not llama_cpp.llama_get_causal_attn(context):
            llama_cpp.llama_free(context)
            raise not_causal(s.model)
        self._context = context
        self._memory = llama_cpp.llama_get_memory(context)
        self._book: NDArray[np.int64] = np.zeros(streams, np.int64)
        self._unsettled: set[int] = set()
        self._filled = None
        self._used = ""


def likeliest(logits: NDArray[np.float32], allowed: Tokens) -> tuple[Tokens, NDArray[np.float32]]:
    """Per row of `logits` (rows x allowed): the likeliest token and its probability among those allowed."""
    best = logits.argmax(axis=1)
    top = logits[np.arange(len(best)), best]
    sure = 1.0 / np.exp(logits - top[:, None]).sum(axis=1)
    return allowed[best], sure.astype(np.float32)
