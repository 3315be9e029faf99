"""Checks before anything is started: no server, no thread and no weights are there yet.

`npcd serve` does all of them in a moment and ends with status 2, instead of starting Redis and PostgreSQL first.
"""

from __future__ import annotations

from dataclasses import replace

from core.errors import ConfigError
from core.files import from_home
from daemon.config import Config, engines_of
from daemon.engine_settings import EngineSetup, named
from daemon.model import check_context, lay_out
from daemon.process.diagnosis import kv_type
from daemon.rpc.addresses import check_addresses
from daemon.rpc.credentials import read_tls, read_tokens
from engines.chat_template import chosen
from engines.llama import check_gpu, check_settings, check_vocabulary, read_file, send_native_log_to
from engines.llama.sizes import fitted
from engines.lora import check_folder
from engines.model_file import GIVE
from memory.archive import check_url
from memory.redis_connection import connection_options

OFF = "off"


def before_start(config: Config) -> None:
    """Reads the files that the settings name, without weights. Raises ConfigError, which names the setting."""
    memory = config.memory
    check_addresses(config.serve)
    read_tls(config.serve)
    read_tokens(config.serve)
    send_native_log_to(None)  # our own error says it
    for name in config.routes.engines():
        setup = engines_of(config)[name]
        with named(setup):
            _check_engine(config, setup)
    if memory.keep and memory.redis not in ("", OFF):
        connection_options(replace(memory.recent, url=memory.redis))
    if memory.keep and memory.postgres not in ("", OFF):
        check_url("memory.postgres", memory.postgres)


def _check_engine(config: Config, setup: EngineSetup) -> None:
    check_settings(setup.settings)
    check_gpu(setup.settings)
    engine = fitted(setup.settings)
    said, vocab = read_file(engine.model)
    for wrong in kv_type(engine.kv_type, said):
        raise ConfigError(f"{wrong.name}: {wrong.says}; {wrong.fix}")
    template = chosen(engine.chat_template, said.get("tokenizer.chat_template", ""))
    layout, _ = lay_out(vocab, template, config.caps)
    check_context(config, layout, engine.context_len)
    if setup.speculation.drafts == "model":
        draft = from_home(setup.speculation.draft_model, "speculation.draft_model")
        try:
            _, theirs = read_file(draft)
        except ConfigError as error:
            why = str(error).removeprefix("model: ").replace(GIVE, "give the draft's GGUF file")
            raise ConfigError(f"speculation.draft_model: {why}") from error
        check_vocabulary(draft, theirs, engine.model, vocab)
    if setup.adapters.folder:
        check_folder(setup.adapters)
