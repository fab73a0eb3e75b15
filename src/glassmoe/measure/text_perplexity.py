"""Perplexity of any causal model on any text, every token predicted once.

A document is read as its start token and its tokens, in windows that never span two documents. Without a stride windows
do not overlap: each predicts as many tokens as it reads, the first of them from one token alone. With a stride of S, a
window after the first predicts its last S tokens and reads those before them again. The last window of a document
reaches back as far as it may. The start of a document is read and never predicted. (This is the rolling likelihood of
lm-evaluation-harness with a context of window - stride + 1.)

LAMBADA is measured two ways, of which papers rarely say the one they mean: the whole passage, token by token, and its
last word given what stands before it, one word a passage, its tokens together.

Legend: B rows, S positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from glassmoe.data.tokens import TokenKind, Tokens
from glassmoe.text.evaluation import EvaluationText

LOGITS = 1 << 23
"""Logits of one pass, at most, unless a single window has more: 32 MiB in float32."""

Float32 = npt.NDArray[np.float32]


class Window(NamedTuple):
    """A document's ids from `begin` to before `end` are read; their last `new` predict the ids that follow them."""

    begin: int
    end: int
    new: int


def windows(targets: int, window: int, stride: int | None = None) -> list[Window]:
    """The windows of a document with `targets` tokens after its start. ValueError for a stride outside 1..window."""
    stride = window if stride is None else stride
    if window < 1 or not 1 <= stride <= window:
        raise ValueError(f"a stride of {stride} does not fit windows of {window} tokens; give 1 to {window}")
    found: list[Window] = []
    done = 0
    while done < targets:
        new = min(stride if found else window, targets - done)
        done += new
        found.append(Window(max(0, done - window), done, new))
    return found


class Scores(NamedTuple):
    """Of each document, in the order of its tokens: nats of each, and, where it was asked for, whether it was the
    likeliest."""

    nats: list[Float32]
    hits: list[npt.NDArray[np.bool_]]
    windows: list[tuple[float, int]]
    """Nats and predicted tokens of every window."""


@torch.no_grad()
def score(
    model: Any, rows: Sequence[Tokens], window: int, stride: int | None = None, likeliest: bool = False
) -> Scores:
    """Cross-entropy of every token of `rows` (token ids, a start token first) but the first, by windows."""
    device = next(model.parameters()).device
    cut = [(row, each) for row, ids in enumerate(rows) for each in windows(len(ids) - 1, window, stride)]
    cut.sort(key=lambda pair: pair[1].begin - pair[1].end)
    nats = [np.zeros(max(len(ids) - 1, 0), np.float32) for ids in rows]
    hits = [np.zeros_like(each, np.bool_) for each in nats] if likeliest else []
    of_windows: list[tuple[float, int]] = []
    was_training = model.training
    model.eval()
    at = 0
    while at < len(cut):
        longest = cut[at][1].end - cut[at][1].begin
        some = cut[at : at + max(1, LOGITS // (longest * model.config.vocab_size))]
        at += len(some)
        ids_BS = np.zeros((len(some), longest), np.int64)
        targets_BS = np.full((len(some), longest), -100, np.int64)
        for place, (row, (begin, end, new)) in enumerate(some):
            ids_BS[place, : end - begin] = rows[row][begin:end]
            targets_BS[place, end - begin - new : end - begin] = rows[row][end - new + 1 : end + 1]
        labels_BS = torch.from_numpy(targets_BS).to(device)
        # Padding stands after the tokens, where a causal model does not look.
        logits_BSV = model(input_ids=torch.from_numpy(ids_BS).to(device), use_cache=False).logits.float()
        loss_T = F.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), reduction="none")
        loss_BS = loss_T.view_as(labels_BS).cpu().numpy()
        hit_BS = (logits_BSV.argmax(-1) == labels_BS).cpu().numpy() if likeliest else None
        for place, (row, (begin, end, new)) in enumerate(some):
            inside = slice(end - begin - new, end - begin)
            nats[row][end - new : end] = loss_BS[place, inside]
            if hit_BS is not None:
                hits[row][end - new : end] = hit_BS[place, inside]
            of_windows.append((float(loss_BS[place, inside].sum(dtype=np.float64)), new))
    model.train(was_training)
    return Scores(nats, hits, of_windows)


def text_perplexity(
    model: Any, kind: TokenKind, text: EvaluationText, window: int, stride: int | None = None
) -> dict[str, Any]:
    """The loss of a model on a text in windows of `window` tokens; `kind`: what its tokens are.

    Returns `loss` (nats a token), its standard error over windows, `perplexity` (a token), `word_perplexity`
    (exp(nats / words), words being what white space parts; None where it is above 1e300), `bits_per_byte`, and what was
    read: `tokens`, `words`, `bytes` (UTF-8), `windows`, `documents`, `skipped`, `not_utf8`, `source`, `sha256`,
    `about`, `window`, `stride`. Of passages also `last_word`: `perplexity` (a word), `accuracy` (all of its tokens the
    likeliest), `words`. ValueError for text that is no token, or ids beyond the model's vocabulary.
    """
    rows = [kind.encode(each) for each in text.texts]
    highest = max(int(row.max()) for row in rows)
    if highest >= model.config.vocab_size:
        raise ValueError(
            f"the tokenizer gives the id {highest} and the model has {model.config.vocab_size}; "
            f"give the model its own tokenizer"
        )
    tokens = sum(len(row) - 1 for row in rows)
    if not tokens:
        raise ValueError(f"{text.name} ({text.source}) has no token to predict; give another text")
    found = score(model, rows, window, stride, likeliest=text.passages)
    nats_W, tokens_W = (np.array(each, np.float64) for each in zip(*found.windows, strict=True))
    nats = float(nats_W.sum())
    loss = nats / tokens
    words = sum(len(each.split()) for each in text.texts)
    size = sum(len(each.encode("utf-8", "surrogatepass")) for each in text.texts)
    spread = math.sqrt(float(((nats_W - loss * tokens_W) ** 2).sum())) / tokens
    return {
        "loss": loss,
        "loss_standard_error": spread if len(nats_W) > 1 else None,
        "perplexity": math.exp(loss),
        "word_perplexity": _exp(nats, words),
        "bits_per_byte": nats / math.log(2) / size,
        "tokens": tokens,
        "words": words,
        "bytes": size,
        "windows": len(nats_W),
        "window": window,
        "stride": window if stride is None else stride,
        "documents": len(rows),
        "skipped": text.skipped,
        "not_utf8": text.not_utf8,
        "source": text.source,
        "sha256": text.sha256,
        "about": text.about,
        **({"last_word": _last_words(kind, text.texts, rows, found)} if text.passages else {}),
    }


def _last_words(kind: TokenKind, texts: Sequence[str], rows: Sequence[Tokens], found: Scores) -> dict[str, Any]:
    nats, right = [], []
    for text, row, nats_N, hits_N in zip(texts, rows, found.nats, found.hits, strict=True):
        before, space, _ = text.rstrip().rpartition(" ")
        if not space or not before.strip():
            continue  # a passage of one word has nothing before it
        # Tokens of the passage beyond those of its beginning; where a token lies across the two, it is the word's.
        first = min(len(kind.encode(before)), len(row) - 1) - 1
        nats.append(float(nats_N[first:].sum(dtype=np.float64)))
        right.append(bool(hits_N[first:].all()))
    if not nats:
        return {"perplexity": None, "accuracy": None, "words": 0}
    return {"perplexity": _exp(sum(nats), len(nats)), "accuracy": sum(right) / len(right), "words": len(nats)}


def _exp(nats: float, count: int) -> float | None:
    return math.exp(nats / count) if count and nats / count < 690 else None
