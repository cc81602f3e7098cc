"""The model's vocabulary: text to tokens, tokens to bytes, and its own settings.

Knows: the engine's tokenizer and metadata calls.
Does not know: memory, sampling, or templates.
"""

import ctypes
from collections.abc import Mapping
from typing import Final

from moerun.engine.load import LoadedModel
from moerun.engine.pieces import read_piece
from moerun.engine.sampling import MODEL_KEYS
from moerun.errors import EngineRefused, UsageError

_NO_TOKEN: Final = -1


class Vocabulary:
    """Tokens of a loaded model. Pieces are read once each and kept."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._llama = loaded.abi.llama
        self._model = loaded.model
        self._pointer = loaded.vocabulary
        self._pieces: dict[int, bytes] = {}
        self.begin_token = int(self._llama.llama_vocab_bos(self._pointer))
        self.end_token = int(self._llama.llama_vocab_eos(self._pointer))
        self._adds_begin = (
            bool(self._llama.llama_vocab_get_add_bos(self._pointer))
            and self.begin_token != _NO_TOKEN
        )

    @property
    def can_fill(self) -> bool:
        """Whether the model can write what stands between two texts."""
        return _NO_TOKEN not in self._fill_tokens()

    def around(self, prefix: str, suffix: str) -> list[int]:
        """Return the prompt for what stands between two texts; UsageError where it cannot be."""
        before, behind, between = self._fill_tokens()
        if not self.can_fill:
            raise UsageError("This model does not support insert.")
        head = [self.begin_token] if self._adds_begin else []
        written = self.tokenize(prefix, is_start=False), self.tokenize(suffix, is_start=False)
        return [*head, before, *written[0], behind, *written[1], between]

    def check(self, tokens: tuple[int, ...]) -> None:
        """Refuse numbers that are no tokens of this model."""
        size = self._llama.llama_vocab_n_tokens(self._pointer)
        wrong = next((token for token in tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise UsageError(f"{wrong} is no token of this model, which has {size:,}.")

    def tokenize(self, text: str, *, is_start: bool = True) -> list[int]:
        """Return the tokens of a prompt; at its start the token of the beginning stands once.

        Control tokens written in the text count as such, since templates write them.
        """
        data = text.encode("utf-8", "replace")
        if len(data) >= 2**31:
            raise UsageError(f"A prompt of {len(data):,} bytes is too long to be tokenized.")
        count = self._tokenize(data, None, 0)
        if count > 0:
            raise EngineRefused("The engine's tokenizer wrote tokens where it was given no room.")
        array = (self._llama.llama_token * max(1, -count))()
        written = self._tokenize(data, array, -count)
        if written < 0:
            raise EngineRefused(f"The engine could not tokenize a prompt of {len(data):,} bytes.")
        tokens = list(array[:written])
        if is_start and self._adds_begin and tokens[:1] != [self.begin_token]:
            tokens.insert(0, self.begin_token)
        return tokens

    def piece(self, token: int, *, with_control: bool = False) -> bytes:
        """Return the bytes of a token, whatever their number; control tokens have none."""
        if with_control:
            return self._read(token, with_control=True)
        if token not in self._pieces:
            self._pieces[token] = self._read(token, with_control=False)
        return self._pieces[token]

    def text_of(self, token: int) -> str:
        """Return how a control token is written; empty when the model has no such token."""
        if token == _NO_TOKEN:
            return ""
        return self.piece(token, with_control=True).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether an answer ends with this token."""
        return bool(self._llama.llama_vocab_is_eog(self._pointer, token))

    @property
    def chat_template(self) -> str | None:
        """Return the model's own template; None when its file has none."""
        template = self._llama.llama_model_chat_template(self._model, None)
        return template.decode("utf-8", "replace") if template else None

    def sampling_defaults(self) -> Mapping[str, float]:
        """Return the settings that the model's file recommends, by moerun's names."""
        found = {}
        for name, key in MODEL_KEYS.items():
            text = self._metadata(key)
            if text is None:
                continue
            try:
                found[name] = float(text)
            except ValueError:
                continue  # another type than a number: the key says nothing
        return found

    def _fill_tokens(self) -> tuple[int, int, int]:
        llama, vocabulary = self._llama, self._pointer
        return (
            int(llama.llama_vocab_fim_pre(vocabulary)),
            int(llama.llama_vocab_fim_suf(vocabulary)),
            int(llama.llama_vocab_fim_mid(vocabulary)),
        )

    def _metadata(self, key: str) -> str | None:
        size = 256
        buffer = ctypes.create_string_buffer(size)
        length = self._llama.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
        return buffer.value.decode("utf-8", "replace") if 0 <= length < size else None

    def _tokenize(self, data: bytes, array: object, room: int) -> int:
        return int(
            self._llama.llama_tokenize(self._pointer, data, len(data), array, room, False, True)
        )

    def _read(self, token: int, *, with_control: bool) -> bytes:
        def read(size: int) -> tuple[int, bytes]:
            buffer = ctypes.create_string_buffer(size)
            count = self._llama.llama_token_to_piece(
                self._pointer, token, buffer, size, 0, with_control
            )
            return int(count), buffer.raw

        return read_piece(read)
