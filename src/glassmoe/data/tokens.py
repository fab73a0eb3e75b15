"""What a token is: the vocabulary of a corpus and how it maps to text.

A domain (`domains.py`) brings its own kinds of tokens. Chess has two with a fixed vocabulary, one token a character or
one token a move; text has the vocabulary of a tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint8 | np.uint16 | np.uint32]

TEXT = "text"
"""Name of the kind whose vocabulary is that of a tokenizer."""


class TokenKind(NamedTuple):
    """One kind of tokens. A token's id is its index in `vocabulary`."""

    name: str
    """Name of the kind, as in `data.tokens` of a run: `characters`, `moves` or `text`."""
    domain: str
    """Name of the domain that the kind belongs to: `chess` or `text`."""
    vocabulary: Sequence[str]
    """Spelling of each token, by id."""
    separator: str
    """What stands between the tokens of a sequence that is written as text."""
    dtype: np.dtype[Any]
    """Type of token ids on disk, little-endian."""
    encode: Callable[[str], Tokens]
    """From the text of a sequence to its ids."""
    decode: Callable[[npt.ArrayLike], str]
    """From ids to text."""
    prompt: str
    """Prompt with which a model begins a sequence of its own."""
    about: str
    """What a model of these tokens reads, in words."""
    one: str
    """What one token is called: character, move, token."""
    counted: str
    """Key of the token counts in a manifest."""
    start_token: str
    """First token of every sequence."""
    unit: str
    """What sequences are called, in the plural: games, documents."""
    tokenizer: str | None = None
    """JSON of a `tokenizers.Tokenizer`; None for a fixed vocabulary."""
    prompt_ids: Callable[[str], Tokens] | None = None
    """Ids of a prompt that a person wrote, where other notations than that of `encode` are read too."""
    token_class: Callable[[int], str] | None = None
    """Class of a token id by its spelling, such as digit or mark; None where tokens have no classes."""
    window: int = 32
    """How many tokens are shown around the token on which a feature fires."""

    @property
    def size(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self.vocabulary)

    @property
    def start(self) -> int:
        """Id of the first token of every sequence."""
        return self.vocabulary.index(self.start_token)

    @property
    def tokenizer_sha256(self) -> str | None:
        """sha256 (hex) of `tokenizer.json`; None for a fixed vocabulary."""
        return None if self.tokenizer is None else hashlib.sha256(self.tokenizer.encode("utf-8")).hexdigest()

    @property
    def classes(self) -> list[str] | None:
        """Class of every token, by id; None where tokens have no classes."""
        return None if self.token_class is None else [self.token_class(token) for token in range(self.size)]

    def encode_prompt(self, text: str) -> Tokens:
        """Token ids of a prompt. ValueError for text that is not in the vocabulary."""
        return (self.prompt_ids or self.encode)(text)

    def split(self, text: str) -> list[str]:
        """The tokens of a text, as text."""
        return text.split(self.separator) if self.separator else list(text)

    def first(self, text: str, count: int) -> str:
        """The first `count` tokens of a text, as one text."""
        return self.separator.join(self.split(text)[:count])
