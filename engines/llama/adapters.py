"""LoRA adapters in the engine's memory, and the one that the context uses."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp

from core.choice import Tokens
from core.errors import ConfigError, EngineFailed
from engines.base import invoked_at
from engines.llama.state import State
from engines.lora import Adapters


class Loras:
    """At most `loaded_max` native adapters, by content hash. `used` is the hash of the one in use; empty for none."""

    def __init__(self, model: Any, state: State, adapters: Adapters | None) -> None:
        self._model = model
        self._state = state
        self._adapters = adapters
        self._resident: dict[str, Any] = {}  # the one used last is last
        self._counted = {"loaded": 0, "dropped": 0, "switched": 0}
        self.used = ""

    def try_all(self) -> None:
        """Loads every single adapter once. Raises ConfigError naming the one that llama.cpp does not take."""
        adapters = self._adapters
        for name in adapters.names if adapters is not None else ():
            assert adapters is not None
            try:
                self.hold(adapters.find(name).sha)
            except EngineFailed as error:
                raise ConfigError(f"adapters.folder: {error}") from error

    def use(self, sha: str) -> None:
        """Gives the context an adapter, or none. KV stays; the next decode takes about a millisecond more."""
        if sha:
            one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self.hold(sha))
            code = llama_cpp.llama_set_adapters_lora(self._state.context, one, 1, (ctypes.c_float * 1)(1.0))
        else:
            code = llama_cpp.llama_set_adapters_lora(self._state.context, None, 0, None)
        if code != 0:
            raise EngineFailed(f"llama_set_adapters_lora answered {code}")
        self.used = sha
        self._counted["switched"] += bool(sha)

    def hold(self, sha: str) -> Any:
        """The native adapter. If it is not in memory it is loaded, and the one unused longest makes room for it."""
        adapters = self._adapters
        assert adapters is not None and adapters.known(sha), f"nobody has checked an adapter {sha}"
        lora = self._resident.pop(sha, None)
        if lora is None:
            while len(self._resident) >= adapters.settings.loaded_max:
                self._drop(next(iter(self._resident)))
            adapter = adapters.of_sha(sha)
            lora = llama_cpp.llama_adapter_lora_init(self._model, f"/dev/fd/{adapter.file.fileno()}".encode())
            if not lora:
                raise EngineFailed(f"llama.cpp cannot load the adapter '{adapter.name}'; the memory may be full")
            self._counted["loaded"] += 1
        self._resident[sha] = lora
        return lora

    def on_from(self, sha: str, tail: Tokens) -> int:
        """From which token of a tail on the adapter is on: at the invocation that its file has, else at once."""
        assert self._adapters is not None, f"nobody has checked an adapter {sha}"
        return invoked_at(tail, self._adapters.of_sha(sha).invocation)

    def counts(self) -> dict[str, int]:
        """Adapters loaded, dropped and switched to so far, and resident now; empty without a folder of adapters."""
        return {**self._counted, "resident": len(self._resident)} if self._adapters else {}

    def context_was_replaced(self) -> None:
        """A new context has no adapter; those in memory belong to the model and stay."""
        self.used = ""

    def model_was_freed(self) -> None:
        """llama.cpp frees a model's adapters with it."""
        self._resident.clear()

    def _drop(self, sha: str) -> None:
        if sha == self.used:
            self.use("")  # the context's graph still points at it
        llama_cpp.llama_adapter_lora_free(self._resident.pop(sha))
        self._counted["dropped"] += 1
