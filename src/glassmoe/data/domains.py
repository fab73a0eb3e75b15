"""Domains: what a field of data (chess, text) brings to a package that otherwise knows only sequences of tokens.

A domain names its kinds of tokens, says in words what its corpora hold, and may make synthetic data. Nothing below a
domain imports it: `DOMAINS` holds its place, and it is imported when it is first needed. To add one, put a line into
`DOMAINS` or declare an entry point of the group `glassmoe.domains`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from glassmoe.registry import installed

from .tokens import TokenKind

DOMAINS = {"chess": "glassmoe.chess.domain:CHESS", "text": "glassmoe.text.domain:TEXT_DOMAIN"}
"""Name of a domain -> `module:attribute` of its `Domain`."""
ENTRY_POINTS = "glassmoe.domains"
"""Group of entry points by which other packages add domains."""


class UnknownTokens(ValueError):
    """A kind of tokens that belongs to no domain."""


class Synthesize(Protocol):
    """Makes a corpus of synthetic sequences that depend on the seed alone."""

    def __call__(self, out: Path, *, count: int, seed: int, tokens: str) -> object:
        """Prepare `count` sequences in the folder `out`, replacing a corpus that is there."""


FirstSteps = Callable[[TokenKind, str, Sequence[str]], tuple[list[str], float]]
"""`(kind, prompt, texts)` -> the first step that each text takes after the prompt (a move of a game), and the share of
these steps that the rules of the domain allow."""


@dataclass(frozen=True)
class Domain:
    """What a domain brings. Only the first four fields and one kind of tokens are needed."""

    name: str
    """Name of the domain, as in `DOMAINS`."""
    corpus: str
    """What a prepared folder holds, in one word: `games`, `text`."""
    unit: str
    """What sequences are called, in the plural: `games`, `documents`."""
    prepare: Callable[[str | None], str]
    """The command that prepares a corpus of the tokens of this name (None: of the default tokens), for messages."""
    kinds: Mapping[str, TokenKind] = field(default_factory=dict)
    """Kinds of tokens with a fixed vocabulary, by name."""
    tokenized: str | None = None
    """Name of the kind of tokens whose vocabulary is that of a tokenizer; None where there is none."""
    kind_of_tokenizer: Callable[[str, str], TokenKind] | None = None
    """From the JSON of a tokenizer and the token that begins every sequence to the kind of tokens."""
    synthesize: Synthesize | None = None
    """Makes synthetic data for a run without `data.path`; None where there is no synthetic data."""
    notes: Callable[[Mapping[str, Any]], list[str]] | None = None
    """Lines that describe a manifest under the table of a prepared corpus."""
    first_steps: FirstSteps | None = None
    """Judges the first step of continuations by the rules of the domain; None where there are no rules."""

    @property
    def tokens(self) -> list[str]:
        """Names of the kinds of tokens."""
        return [*self.kinds, *([] if self.tokenized is None else [self.tokenized])]

    def holds(self, tokens: str) -> str:
        """What a corpus of these tokens holds, in words."""
        return self.corpus if tokens == self.tokenized else f"{self.corpus} as {tokens}"


def domain_names() -> list[str]:
    """Names of all domains, those of other packages last."""
    return list(dict.fromkeys([*DOMAINS, *installed(ENTRY_POINTS)]))


@cache
def domain(name: str) -> Domain:
    """The domain of this name, imported on first use. ValueError for an unknown name."""
    if name in DOMAINS:
        module, _, attribute = DOMAINS[name].partition(":")
        loaded: Any = getattr(importlib.import_module(module), attribute)
    elif (point := installed(ENTRY_POINTS).get(name)) is not None:
        loaded = point.load()
    else:
        raise ValueError(f"unknown domain {name!r}; known: {', '.join(domain_names())}")
    assert isinstance(loaded, Domain)
    return loaded


def domain_of(tokens: str) -> Domain:
    """The domain that a kind of tokens belongs to. UnknownTokens (a ValueError) for an unknown kind."""
    known = []
    for name in domain_names():
        if tokens in domain(name).tokens:
            return domain(name)
        known += [f"{each} ({name})" for each in domain(name).tokens]
    raise UnknownTokens(f"unknown kind of tokens {tokens!r}; known: {', '.join(known)}")


def token_kind(tokens: str) -> TokenKind:
    """The kind of tokens of this name. ValueError for an unknown kind, and for one that needs a tokenizer."""
    owner = domain_of(tokens)
    if tokens not in owner.kinds:
        raise ValueError(
            f"the vocabulary of {tokens} tokens is that of a tokenizer, which lies in the corpus or the run; open that"
        )
    return owner.kinds[tokens]


def preparing(path: Path, tokens: str | None = None) -> tuple[str, str]:
    """What a folder should hold, in a word, and how to prepare it there: of these tokens, or (None) in any domain."""
    if tokens is not None:
        owner = domain_of(tokens)
        return owner.corpus, f"prepare {owner.corpus} with: {owner.prepare(tokens)} --out {path}"
    commands = [f"{domain(name).prepare(None)} --out {path}" for name in domain_names()]
    return "corpus", f"prepare one with: {', or '.join(commands)}"
