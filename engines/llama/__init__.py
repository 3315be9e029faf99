"""llama.cpp as an engine, through llama-cpp-python's low-level API. Only this folder imports llama_cpp."""

from engines.llama.engine import LlamaEngine, open_draft
from engines.llama.loading import load_vocab, read_file
from engines.llama.measuring import Needs, planned
from engines.llama.model import check_gpu
from engines.llama.native import built_with, gpu_kinds, gpus, send_native_log_to, version
from engines.llama.settings import SEQUENCES_MAX, LlamaSettings, check_settings, default_threads
from engines.llama.step import likeliest
from engines.llama.vocabulary import LlamaVocab, check_vocabulary

__all__ = [
    "SEQUENCES_MAX",
    "LlamaEngine",
    "LlamaSettings",
    "LlamaVocab",
    "Needs",
    "built_with",
    "check_gpu",
    "check_settings",
    "check_vocabulary",
    "default_threads",
    "gpu_kinds",
    "gpus",
    "likeliest",
    "load_vocab",
    "open_draft",
    "planned",
    "read_file",
    "send_native_log_to",
    "version",
]
