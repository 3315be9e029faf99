"""llama.cpp behind StepEngine: one model, one context, and the parts that work on them.

| file | what it owns |
|---|---|
| native | bindings by hand, and the library's log |
| settings, sizes | the settings and their bounds; the sizes that fit the memory |
| loading, model | GGUF files, and the facts of a loaded model |
| measuring | the memory that a model will take |
| vocabulary | text to tokens and back |
| state, batch | the context with its sequences of KV; the arrays of a step |
| step | a plan to tokens |
| samplers, adapters | native sampler chains; LoRA adapters in memory |

Everything is used on the engine thread, except LlamaVocab, which reads immutable parts of the model, and
adapter_counts(), which reads numbers. Cancelling is not known here: the scheduler stops planning a work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp

from core.choice import Tokens
from core.clock import Clock, now_ns
from core.work import Sampling
from engines.base import Geometry, KvKind, StepPlan, StepResult
from engines.llama.adapters import Loras
from engines.llama.loading import UNBOUNDED, load_as_f16, load_model, load_vocab
from engines.llama.model import ModelCard, card_of, check_gpu, check_kind, check_kv_room, check_kv_type, kv_kind
from engines.llama.samplers import Samplers
from engines.llama.settings import SEQUENCES_MAX, LlamaSettings, check_settings, default_threads
from engines.llama.sizes import fitted
from engines.llama.state import State
from engines.llama.step import Steps
from engines.llama.vocabulary import LlamaVocab, check_vocabulary
from engines.lora import Adapters
from engines.model_file import look, no_numbers

FLASH_CHUNK_MIN = 64  # below this, flash attention on a CPU spends more on a chunk than it saves


class LlamaEngine:
    """A StepEngine on one llama.cpp context with `sequences` independent KV streams."""

    def __init__(
        self, settings: LlamaSettings, adapters: Adapters | None = None, sha256: Callable[[], str] | None = None
    ) -> None:
        """`sha256` gives the hash of the model's file, where it is known already or read elsewhere. Raises ConfigError
        naming the setting, the model or the adapter that is wrong.
        """
        check_settings(settings)
        check_gpu(settings)
        settings = fitted(settings)
        self.settings = settings  # with the weights as they are
        self.weights_why = ""  # why they are not f16, where f16 was wanted
        self._file = look(settings.model)
        self._sha256 = sha256 or self._file.sha256
        self._model: Any
        # One sequence more than promised: scratch (see State).
        sequences = min(settings.sequences, SEQUENCES_MAX - 1)
        self.threads = settings.threads or default_threads()
        self._open(sequences + 1)
        finite = self._computes()
        if not finite and self.settings.weights == "f16":
            self._free()
            self.settings, self.weights_why = replace(settings, weights="file"), UNBOUNDED
            self._open(sequences + 1)
            finite = self._computes()
        if not finite:
            self._free()
            raise no_numbers(settings.model)
        chunk_min = FLASH_CHUNK_MIN if settings.flash_attention == "on" else 0
        self.geometry = Geometry(
            sequences, settings.context_len, settings.batch_len, settings.micro_len, self.vocab.size, chunk_min
        )
        self.samplers = Samplers(self._model, self.vocab.size)
        self.loras = Loras(self._model, self.state, adapters)
        self.steps = Steps(self.state, self.samplers, self.settings, sequences, self.vocab.size)

    def _open(self, streams: int) -> None:
        """Loads the model as the settings say, or as its file has it, and opens a context."""
        if self.settings.weights == "f16":
            self._model, self.weights_why = load_as_f16(self.settings.model, self.settings.gpu_layers)
            if self.weights_why:
                self.settings = replace(self.settings, weights="file")
        else:
            self._model = load_model(self.settings.model, self.settings.gpu_layers)
        check_kind(self._model, self.settings.model)
        check_kv_type(self._model, self.settings)
        self.vocab = LlamaVocab(self._model)
        check_kv_room(self._model, self.settings, streams)
        self.state = State(self._model, self.settings, self.threads, streams)

    def _computes(self) -> bool:
        """True if the model answers a few tokens of plain text with numbers."""
        return self.state.all_finite(self.vocab.probe()[: self.settings.batch_len])

    def _free(self) -> None:
        self.state.close()
        if self._model is not None:
            llama_cpp.llama_model_free(self._model)  # and the adapters with it
            self._model = None

    @cached_property
    def card(self) -> ModelCard:
        """The metadata of the file. The first call reads all of it, for its hash, unless the hash was given."""
        return card_of(self._model, self._file, self._sha256(), self.settings)

    @property
    def name(self) -> str:
        """Library and version."""
        return f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"

    @property
    def weights(self) -> str:
        """How it holds its weights: as in the settings, or "file" where there was no room for a copy."""
        return self.settings.weights

    @property
    def clock(self) -> Clock:
        """The process's clock."""
        return now_ns

    @property
    def kv_kind(self) -> KvKind:
        """Of this model with these settings, as this llama.cpp writes it."""
        return kv_kind(self._model, self.card.sha256, self.settings)

    def step(self, plan: StepPlan) -> StepResult:
        """Decodes all slices in one call and picks a token where one was asked for."""
        if plan.adapter != self.loras.used:
            self.loras.use(plan.adapter)
        return self.steps.run(plan)

    # -- sequences -----------------------------------------------------------------------------------------------------

    def copy(self, src: int, dst: int) -> None:
        """Makes dst equal to src, whole."""
        self.state.copy(src, dst)

    def trim(self, seq: int, length: int) -> None:
        """Cuts the sequence back to its first `length` tokens."""
        self.state.trim(seq, length)

    def length(self, seq: int) -> int:
        """Tokens in the sequence, as llama.cpp counts them."""
        return self.state.length(seq)

    def store(self, seq: int) -> bytes:
        """The sequence's KV as llama.cpp writes it."""
        return self.state.store(seq)

    def load(self, seq: int, blob: bytes) -> bool:
        """Puts stored bytes into the sequence; False and an empty sequence when llama.cpp refuses them.

        Callers verify a checksum first: llama.cpp does not find a flipped bit.
        """
        return self.state.load(seq, blob)

    # -- samplers and adapters -----------------------------------------------------------------------------------------

    def add_sampler(self, sampling: Sampling, recent: Sequence[int]) -> int:
        """A native chain: penalties, DRY against repeating, top-k, top-p, min-p, temperature, seeded draw."""
        return self.samplers.add(sampling, recent)

    def drop_sampler(self, sampler: int) -> None:
        """Frees a chain."""
        self.samplers.drop(sampler)

    def try_adapters(self) -> None:
        """Loads every single adapter once. Raises ConfigError naming the one that llama.cpp does not take."""
        self.loras.try_all()

    def adapter_from(self, adapter: str, tail: Tokens) -> int:
        """At the invocation that its file has, else at once."""
        return self.loras.on_from(adapter, tail)

    def adapter_counts(self) -> dict[str, int]:
        """Empty without a folder of adapters."""
        return self.loras.counts()

    # -- life ----------------------------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """A new context of the same geometry; every sequence is empty."""
        self.state.open()
        self.loras.context_was_replaced()
        self.steps.context_was_replaced()

    def close(self) -> None:
        """Frees samplers, context and model. Also after a rebuild() that failed; a second call changes nothing."""
        self.samplers.close()
        self._free()
        self.loras.model_was_freed()


def open_draft(path: Path, target: LlamaEngine, sequences: int) -> LlamaEngine:
    """A small model that guesses for `target`. Raises ConfigError unless both have the same tokens."""
    settings = target.settings
    check_vocabulary(path, load_vocab(path), settings.model, target.vocab)
    # "auto" was settled for the target; a draft is read as it is in its file.
    return LlamaEngine(
        replace(settings, model=path, sequences=sequences, weights="file", kv_type="f16", chat_template="")
    )
