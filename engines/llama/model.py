"""Facts of a loaded model: its card, its shape, and whether npcd can run it here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp

from core.errors import ConfigError
from engines.base import PAD_LEN, KvKind
from engines.chat_template import chosen
from engines.llama import native
from engines.llama.measuring import planned
from engines.llama.settings import LlamaSettings, flash
from engines.model_file import ModelFile, not_causal, recurrent
from engines.room import check_room, memory_free

KV_BLOCK = 32  # values of q8_0 share a scale, so a head must be made of whole blocks


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The metadata of a GGUF file. `sha256` is of the whole file; `license` may be empty; `chat_template` is the file's
    own, or the one of the settings.
    """

    name: str
    sha256: str
    architecture: str
    license: str
    context_trained: int
    parameters: int
    chat_template: str


def card_of(model: Any, file: ModelFile, sha256: str, settings: LlamaSettings) -> ModelCard:
    """The card of a loaded model. Raises ConfigError for a chat template of the settings that cannot be read."""
    return ModelCard(
        name=_meta(model, "general.name") or file.parts[0].stem,
        sha256=sha256,
        architecture=_meta(model, "general.architecture"),
        license=_meta(model, "general.license"),
        context_trained=int(llama_cpp.llama_model_n_ctx_train(model)),
        parameters=int(llama_cpp.llama_model_n_params(model)),
        chat_template=chosen(settings.chat_template, _meta(model, "tokenizer.chat_template")),
    )


def kv_kind(model: Any, sha256: str, settings: LlamaSettings) -> KvKind:
    """The origin of this model's stored KV bytes, with these settings, as this llama.cpp writes them."""
    shape = (
        f"{llama_cpp.llama_model_n_layer(model)} layers, {llama_cpp.llama_model_n_embd(model)} wide, "
        f"{llama_cpp.llama_model_n_head_kv(model)} heads of {_head_lens(model)}, "
        f"llama-cpp-python {llama_cpp.__version__}"
    )
    attention = "flash" if flash(settings) else "plain"
    return KvKind(f"{sha256} {settings.weights}", settings.kv_type, attention, shape)


def check_kind(model: Any, path: Path) -> None:
    """Raises ConfigError for models whose sequences cannot be cut back to an earlier length, or that do not write."""
    if llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model):
        raise recurrent(path)
    if llama_cpp.llama_model_is_diffusion(model):
        raise not_causal(path)
    if llama_cpp.llama_vocab_type(llama_cpp.llama_model_get_vocab(model)) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
        raise ConfigError(f"model: {path} has no tokenizer in it; take a file that was converted with one")
    if llama_cpp.llama_model_has_encoder(model) or not llama_cpp.llama_model_has_decoder(model):
        raise ConfigError(f"model: {path} is no text generator (it has an encoder, or no decoder); take a chat model")


def check_kv_type(model: Any, settings: LlamaSettings) -> None:
    """Raises ConfigError for a KV type whose blocks do not fit the model's heads: llama.cpp would abort."""
    wrong = [length for length in _head_lens(model) if length % KV_BLOCK]
    if settings.kv_type != "f16" and wrong:
        raise ConfigError(
            f"engine.kv_type: {settings.kv_type} needs heads of a multiple of {KV_BLOCK} values, those of "
            f"{settings.model.name} have {wrong[0]}; take f16"
        )


def check_kv_room(model: Any, settings: LlamaSettings, streams: int) -> None:
    """Raises ConfigError when KV and the buffers of the computation would not fit the memory. On a device llama.cpp
    itself says so.
    """
    free = memory_free()
    heads = max(llama_cpp.llama_model_n_head(model), llama_cpp.llama_model_n_head_kv(model))
    most = 4 * llama_cpp.llama_model_n_layer(model) * heads * sum(_head_lens(model)[:2])
    tokens = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
    # Logits of all sequences and of a micro-batch; attention and activations of a micro-batch.
    work = 4 * tokens * (streams + settings.micro_len)
    work += 8 * settings.micro_len * (heads * (settings.context_len + PAD_LEN) + 8 * _width(model))
    if settings.gpu_layers or not free or streams * settings.context_len * most + work <= free:
        return  # by far
    plan = planned(settings.model, settings, streams)
    if plan is not None:  # else opening the context will say what is wrong
        padded = -(-settings.context_len // PAD_LEN) * PAD_LEN
        check_room(streams, padded, plan.kv // (streams * padded), free, plan.buffers)


def check_gpu(settings: LlamaSettings) -> None:
    """Raises ConfigError when layers are wanted on a GPU and there is none: llama.cpp would take the CPU in silence."""
    if not settings.gpu_layers or llama_cpp.llama_supports_gpu_offload():
        return
    kinds = native.gpu_kinds()
    if kinds:
        why, fix = f"was built for {', '.join(kinds)} and finds no such GPU", "look at its driver"
    else:
        why, fix = "was built for the CPU alone", "build it for your GPU with make setup GPU=cuda or GPU=vulkan"
    raise ConfigError(
        f"engine.gpu_layers: {settings.gpu_layers}, but this llama.cpp {why}; {fix}, or make engine.gpu_layers 0"
    )


def _meta(model: Any, key: str) -> str:
    """The value that the file has under a key; empty when it has none."""
    return native.written_text(partial(llama_cpp.llama_model_meta_val_str, model, key.encode()))


def _head_lens(model: Any) -> tuple[int, ...]:
    """How many values a key's head and a value's head have, then the same of layers with a window where they differ."""
    arch, usual = _meta(model, "general.architecture"), _usual_head_len(model)
    said = [_meta(model, f"{arch}.attention.{of}_length{where}") for where in ("", "_swa") for of in ("key", "value")]
    return tuple(int(text) if text.isdigit() else usual for text in said[:2]) + tuple(
        int(text) for text in said[2:] if text.isdigit()
    )


def _width(model: Any) -> int:
    return int(llama_cpp.llama_model_n_embd(model))


def _usual_head_len(model: Any) -> int:
    return _width(model) // max(1, int(llama_cpp.llama_model_n_head(model)))
