"""What is asked: a prompt as tokens, and the tokens whose logits are traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glassmoe.data.tokens import TokenKind, Tokens
from glassmoe.model.subject import Subject
from glassmoe.text.spelling import Spelling

MOST_TARGETS, PROBABILITY = 10, 0.95
"""As many of the likeliest tokens are traced as reach this probability together, at most so many."""


class Prompt(NamedTuple):
    """A prompt. `ids`: its tokens; `texts`: what each spells; `text`: the prompt as it was written."""

    ids: list[int]
    texts: list[str]
    text: str


class Chosen(NamedTuple):
    """The K traced tokens, likeliest first, with their probabilities; `against`: the token whose logit is subtracted;
    `readout_KV`: combinations of logits, float64."""

    tokens: list[int]
    probabilities: list[float]
    against: int | None
    readout_KV: Tensor


def read_prompt(subject: Subject, kind: TokenKind, prompt: str | Sequence[int]) -> Prompt:
    """ValueError for a prompt that is empty, longer than the context, or not in the vocabulary."""
    if not len(prompt):
        raise ValueError("the prompt is empty; give the text whose next token is to be explained")
    if isinstance(prompt, str):
        ids = [int(token) for token in subject.encode(prompt, prompt=True)]
    else:
        ids = given_ids(subject, prompt, "the prompt").tolist()
    if not 0 < len(ids) <= subject.context:
        raise ValueError(f"the prompt has {len(ids)} tokens; expected 1 to {subject.context}, the context of the model")
    texts = Spelling(kind)(np.array(ids))
    return Prompt(ids, texts, prompt if isinstance(prompt, str) else kind.separator.join(texts))


def given_ids(subject: Subject, ids: Any, what: str) -> Tokens:
    """(T,): token ids that a caller gives, as a list, an array or a tensor. ValueError unless they are one row of ids
    of the vocabulary. `what`: what they are, for the message."""
    try:
        row = np.asarray(ids.detach().cpu() if isinstance(ids, Tensor) else ids)
    except (ValueError, TypeError):  # rows of different lengths
        row = np.zeros((2, 0))
    if row.shape == (0,):
        return row.astype(np.int64)
    if row.ndim != 1 or row.dtype.kind not in "iu":
        is_table = row.ndim != 1
        raise ValueError(
            f"{what} is {'several rows' if is_table else f'of type {row.dtype}'}; expected "
            f"{'one row of token ids, such as ids[0]' if is_table else 'token ids, which are whole numbers'}"
        )
    size = min(subject.kind().size, subject.vocab_size)
    wrong = row[(row < 0) | (row >= size)]
    if len(wrong):
        raise ValueError(f"{what} has token id {wrong[0]}; expected ids from 0 to {size - 1}")
    return row


def token_of(kind: TokenKind, text: str | int, name: str, size: int | None = None) -> int:
    """The token that spells a text, or has this id. ValueError, which names what the text consists of, for a text that
    is no single token. `name`: the argument, for the message. `size`: ids that the model has, where these may be fewer
    than the tokenizer's."""
    known = kind.size if size is None else min(size, kind.size)
    if isinstance(text, int) and not isinstance(text, bool):
        if not 0 <= text < known:
            raise ValueError(f"{name} is token id {text}; expected an id from 0 to {known - 1}")
        return text
    spelling = Spelling(kind)
    try:
        ids = [int(token) for token in kind.encode(str(text))]
    except ValueError:
        ids = []
    ids = ids[1:] if len(ids) > 1 and ids[0] == kind.start else ids
    if len(ids) == 1 and spelling.one(ids[0]) == text:
        if ids[0] >= known:
            raise ValueError(
                f"{name} is {text!r} (id {ids[0]}), but the model has ids below {known}; give another token"
            )
        return ids[0]
    # Tokens that encoding never makes; looking at all of a large vocabulary takes seconds.
    spelled = next((token for token in range(known) if spelling.one(token) == text), None)
    if spelled is not None:
        return spelled
    pieces = ", ".join(repr(spelling.one(token)) for token in ids)
    raise ValueError(
        f"{name} is {text!r}, which is no single token"
        + (f" but {pieces}; give one of these" if len(ids) > 1 else f"; give one {kind.one} of the vocabulary")
    )


def choose_targets(kind: TokenKind, logits_V: Tensor, target: str | int | None, against: str | int | None) -> Chosen:
    """The traced tokens: `target`, or the likeliest ones. With `against` the difference of two logits. ValueError for
    what is no single token."""
    probability_V = torch.softmax(logits_V.double(), dim=0).cpu()
    size = len(probability_V)
    if target is not None:
        tokens = [token_of(kind, target, "target", size)]
    elif against is not None:
        tokens = [int(probability_V.argmax())]
    else:
        top = probability_V.topk(min(MOST_TARGETS, size))
        reached = int((top.values.cumsum(0) < PROBABILITY).sum()) + 1
        tokens = top.indices[:reached].tolist()
    other = None if against is None else token_of(kind, against, "against", size)
    if other is not None and other in tokens:
        raise ValueError(
            f"against is the target itself, {Spelling(kind).one(other)!r}; give two different tokens to compare"
        )
    readout_KV = torch.zeros(len(tokens), size, dtype=torch.float64)
    readout_KV[torch.arange(len(tokens)), tokens] = 1.0
    if other is None:
        readout_KV -= 1 / size
    else:
        readout_KV[:, other] -= 1
    return Chosen(tokens, probability_V[tokens].tolist(), other, readout_KV)
