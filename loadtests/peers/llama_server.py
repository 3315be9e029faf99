"""llama.cpp's own server as a peer: the same model file, the same token ids, its best settings.

An **intent** is POST /completion with the NPC's trunk and tail as token ids, `cache_prompt`, three tokens, temperature
0 and a grammar over token ids (`<[id]>`) that allows exactly what npcd's choice allows: action, target, emotion. With
`pin` an NPC always has the same slot (`id_slot`), else the server chooses the one whose cache is most alike. A
**dialogue turn** is the same endpoint with `stream`, at most 24 tokens at temperature 0; the next turn's prompt begins
with the last one's, so that its slot may have it all.

The server runs from the `xllamacpp` package (a wheel, built for AVX2) or, fairer where the processor has more, from a
llama-server program built for this machine. Neither is installed with npcd:

    python -m venv ../peers && ../peers/bin/pip install xllamacpp
    python -m loadtests.bench peer --peer-python ../peers/bin/python

    # or, from the very sources that npcd's own llama.cpp was built from
    pip download --no-deps --no-binary :all: llama_cpp_python==0.3.36 && tar xzf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DBUILD_SHARED_LIBS=OFF
    cmake --build build --target llama-server
    python -m loadtests.bench peer --peer-binary build/bin/llama-server

Run as a program, this file serves: `PYTHON llama_server.py SETTINGS_AS_JSON`, until its standard input ends. It imports
nothing but xllamacpp then.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
MISSING = """{python} has no xllamacpp; npcd does not install it. Either
    python -m venv ../peers && ../peers/bin/pip install xllamacpp
    python -m loadtests.bench {area} --peer-python ../peers/bin/python
or build llama-server and give it with --peer-binary; loadtests/peers/llama_server.py says how."""


def missing(python: str, area: str = "peer") -> str:
    """The error for a Python without llama-server: how to install it."""
    return MISSING.format(python=python, area=area)


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """How the server is set up. `pin` and `slots` are used by the caller too."""

    model: str
    port: int
    slots: int = 32
    threads: int = 1
    unified: bool = False
    flash_attention: bool = False
    cache_ram_mib: int = 0
    cache_idle: bool = True  # copy idle slots to the cache in RAM with every request, or only when they are taken
    pin: bool = False
    context_len: int = 1024
    threads_http: int = 320

    @property
    def words(self) -> str:
        """Its settings in a line."""
        return (
            f"{self.slots} slots, {self.threads} thread{'s' * (self.threads > 1)}, "
            f"kv {'unified' if self.unified else 'split'}, "
            f"fa {'on' if self.flash_attention else 'off'}, cache {self.cache_ram_mib} MiB"
            f"{'' if self.cache_idle or not self.cache_ram_mib else ' when taken'}, "
            f"{'pinned' if self.pin else 'any slot'}"
        )


def grid(model: str, port: int) -> Iterator[PeerSettings]:
    """The settings that are tried first: slots, one KV buffer or one per slot, flash attention."""
    for slots in (16, 32, 64, 128):
        for unified in (False, True):
            for flash_attention in (False, True):
                yield PeerSettings(model, port, slots, 1, unified, flash_attention)


def command(settings: PeerSettings, python: str, binary: str) -> list[str]:
    """The command line that starts the server."""
    if not binary:
        return [python, str(Path(__file__).resolve()), json.dumps(asdict(settings))]
    s = settings
    return [
        *(binary, "--model", s.model, "--host", HOST, "--port", str(s.port)),
        *("--parallel", str(s.slots), "--ctx-size", str(s.slots * s.context_len)),
        *("--threads", str(s.threads), "--threads-batch", str(s.threads), "--threads-http", str(s.threads_http)),
        *("--flash-attn", "on" if s.flash_attention else "off"),
        "--kv-unified" if s.unified else "--no-kv-unified",
        "--cache-idle-slots" if s.cache_idle else "--no-cache-idle-slots",
        *("--cache-ram", str(s.cache_ram_mib), "--no-slots", "--log-verbosity", "1"),
    ]


def token_grammar(actions: Sequence[tuple[int, Sequence[int]]], emotions: Sequence[int]) -> str:
    """A grammar of three tokens, by token ids: an action with one of its allowed targets, then an emotion."""
    ways: dict[tuple[int, ...], list[int]] = {}
    for action, targets in actions:
        ways.setdefault(tuple(targets), []).append(action)
    rules = [f"{_any_of(some)} {_any_of(targets)} feel" for targets, some in ways.items()]
    return f"root ::= {' | '.join(rules)}\nfeel ::= {_any_of(emotions)}"


def _any_of(tokens: Sequence[int]) -> str:
    return "(" + " | ".join(f"<[{token}]>" for token in tokens) + ")"


def intent_body(prompt: Sequence[int], grammar: str, slot: int) -> dict[str, Any]:
    """The request for an intent; slot -1: any."""
    return {
        "prompt": list(prompt),
        "n_predict": 3,
        "grammar": grammar,
        "cache_prompt": True,
        "id_slot": slot,
        "temperature": 0,
        "samplers": ["top_k"],
        "top_k": 1,
        "return_tokens": True,
        "response_fields": ["tokens", "timings"],
    }


def turn_body(prompt: Sequence[int], tokens: int, slot: int) -> dict[str, Any]:
    """The request for one turn, streamed."""
    return {
        "prompt": list(prompt),
        "n_predict": tokens,
        "cache_prompt": True,
        "id_slot": slot,
        "temperature": 0,
        "samplers": ["top_k"],
        "top_k": 1,
        "return_tokens": True,
        "stream": True,
    }


def _serve(settings: PeerSettings) -> int:
    """Runs the server until standard input ends."""
    try:
        import xllamacpp
    except ImportError:
        print(missing(sys.executable), file=sys.stderr)
        return 3
    params = xllamacpp.CommonParams()
    params.model.path = settings.model
    params.hostnames = [HOST]
    params.port = settings.port
    params.n_parallel = settings.slots
    params.n_ctx = settings.slots * settings.context_len
    params.kv_unified = settings.unified
    kinds = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = (
        kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if settings.flash_attention else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.n_threads_http = settings.threads_http
    params.cache_ram_mib = settings.cache_ram_mib
    params.cache_idle_slots = settings.cache_idle
    params.endpoint_slots = False
    params.verbosity = 1
    server = xllamacpp.Server(params)
    sys.stdin.read()
    del server
    return 0


if __name__ == "__main__":
    sys.exit(_serve(PeerSettings(**json.loads(sys.argv[1]))))
