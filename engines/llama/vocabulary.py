"""The tokens of a model: text to tokens and back."""

from __future__ import annotations

import ctypes
import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import llama_cpp

from core.errors import ConfigError
from engines.llama import native
from prompts.thoughts import is_of_a_thought

UNKNOWN, CONTROL, ADDED, BYTE = 1 << 0, 1 << 3, 1 << 4, 1 << 5  # LLAMA_TOKEN_ATTR_...; ADDED is _USER_DEFINED

PROBE_LEN = 7


class LlamaVocab:
    """The tokens of a loaded model. Any thread may call; adopt() is called once, before anything is encoded."""

    def __init__(self, model: Any) -> None:
        self._model = model  # keeps the owner of the native vocabulary alive
        vocab = llama_cpp.llama_model_get_vocab(model)
        assert vocab, "a loaded model has a vocabulary"
        self._vocab = vocab
        self.size = int(llama_cpp.llama_vocab_n_tokens(vocab))
        self.eog_ids = frozenset(i for i in range(self.size) if native.is_eog(vocab, i) and self._is_meant(i))
        bos, eos = (int(of(vocab)) for of in (llama_cpp.llama_vocab_bos, llama_cpp.llama_vocab_eos))
        bos, eos = (i if i >= 0 and self._is_meant(i) else -1 for i in (bos, eos))
        self.bos_id = bos if llama_cpp.llama_vocab_get_add_bos(vocab) else -1
        self.bos_text, self.eos_text = self.written(bos), self.written(eos)
        self._pieces: list[bytes | None] = [None] * self.size
        marked = UNKNOWN | CONTROL | ADDED | BYTE
        kinds = {i: kind for i in range(self.size) if (kind := native.attributes(vocab, i) & marked)}
        kinds |= {
            i: CONTROL for i in self.eog_ids if i not in kinds
        }  # the file calls it text, and ends answers with it
        texts = ((i, self.written(i)) for i in kinds)
        # Tokens that must not come out of text that only looks like them. Runs of spaces and line breaks (Gemma) may.
        self._not_text = {i: text for i, text in texts if len(text) > 1 and text.strip("\u2581 \t\r\n")}
        self._markers = frozenset(i for i in self._not_text if kinds[i] & (CONTROL | ADDED))
        self._adopted: dict[str, int] = {}
        self._splits: re.Pattern[str] | None = None
        self._anchor = ""
        self._anchor = self._find_anchor()

    def _is_meant(self, token: int) -> bool:
        """False for an ordinary token that llama.cpp takes for BOS or EOS because the file names none. Of byte-level
        vocabularies it takes token 11, often a comma.
        """
        if native.attributes(self._vocab, token) & (UNKNOWN | CONTROL | ADDED):
            return True
        keys = (f"tokenizer.ggml.{name}_token_id".encode() for name in ("bos", "eos", "eot", "eom"))
        read = partial(partial, llama_cpp.llama_model_meta_val_str, self._model)
        return any(native.written_text(read(key)) == str(token) for key in keys)

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text as it continues other text; control tokens written in it come out as ordinary text."""
        tokens = self._continued(text, special=False)
        if self._not_text.keys().isdisjoint(tokens):
            return tokens
        # llama.cpp matches added tokens in any text, and sentencepiece may merge its way to a control token ("</" and
        # "s>"): such text is broken up after its first character. Tokens of bytes and of unknown characters may stay.
        for token in tokens:
            at = text.find(self._not_text[token]) if token in self._not_text else -1
            if at >= 0:
                return self.encode(text[: at + 1]) + self.encode(text[at + 1 :])
        if self._markers.isdisjoint(tokens) or len(text) < 2:
            return [token for token in tokens if token not in self._markers]
        # The tokenizer read another spelling of the marker, such as a space where the vocabulary has "\u2581".
        half = len(text) // 2
        return self.encode(text[:half]) + self.encode(text[half:])

    def markup(self, text: str) -> list[int]:
        """Tokens of a template's own text as it continues other text. Control tokens written in it count, and so do
        adopted ones.
        """
        if self._splits is None:
            return self._continued(text, special=True)
        tokens: list[int] = []
        for part in self._splits.split(text):
            tokens += [self._adopted[part]] if part in self._adopted else self._continued(part, special=True)
        return tokens

    def adopt(self, texts: Sequence[str]) -> None:
        """Makes markers of the tokens that are written so, although the file calls them ordinary text: from now on a
        template's text has them whole, and a player's text never has them.
        """
        for text in texts:
            token = self.whole(text)
            assert token >= 0, f"the vocabulary has no '{text}'"
            self._adopted[text] = token
            self._not_text[token] = text
        self._markers |= set(self._adopted.values())
        longest_first = sorted(self._adopted, key=len, reverse=True)
        self._splits = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

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
        """True if it is a control token, an added one, or an adopted one."""
        return token in self._markers

    def probe(self) -> list[int]:
        """A few tokens of a text as it begins, to try a model on: the first ones have the largest values."""
        return ([self.bos_id] if self.bos_id >= 0 else []) + (self.encode("The door is open.\n") or [0])[:PROBE_LEN]

    def piece(self, token: int) -> bytes:
        """The bytes of one token; empty for control tokens, but for the marks of thoughts: guards read them."""
        known = self._pieces[token]
        if known is None:
            shown = is_of_a_thought(self.written(token))
            room = 256
            buffer = ctypes.create_string_buffer(room)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, shown)
            if length < 0:
                room = -length
                buffer = ctypes.create_string_buffer(room)
                length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, shown)
            known = self._pieces[token] = buffer.raw[: max(length, 0)]
        return known

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The tokens that begin, end and separate texts: BOS, EOS, EOT, then all tokens that end a generation."""
        named = (llama_cpp.llama_vocab_bos, llama_cpp.llama_vocab_eos, llama_cpp.llama_vocab_eot)
        return (*(int(of(self._vocab)) for of in named), self.bos_id, *sorted(self.eog_ids))

    def digest(self) -> str:
        """A hash of all tokens in order, with their kinds."""
        found = hashlib.sha256()
        for token in range(self.size):
            text = llama_cpp.llama_vocab_get_text(self._vocab, token) or b""
            found.update(b"%d %d %b\0" % (token, native.attributes(self._vocab, token), text))
        return found.hexdigest()

    def _find_anchor(self) -> str:
        """Text to put before a text so that it is read as the middle of one; empty when none is needed.

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
