"""Perplexity of any causal model on any text. Every token is predicted once, by the model itself or by the model with a
coder in place of its target.

A document is its start token and its tokens, read in windows that never span two documents. Without a stride windows do
not overlap: each predicts as many tokens as it reads, the first of them from one token alone. With a stride of S, a
window after the first predicts its last S tokens and reads the tokens before them again. The last window of a document
begins as early as its length allows. The start of a document is read and never predicted. (This is the rolling
likelihood of lm-evaluation-harness with a context of window - stride + 1.)

Papers rarely say how they measure LAMBADA, so there are two measures: the whole passage, token by token, and its last
word given the words before it. The second counts one word per passage, with all of its tokens together.

Legend: B rows, S positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.data.tokens import TokenKind, Tokens
from glassmoe.inspect.edit import spliced
from glassmoe.inspect.readers import Reader, sources
from glassmoe.model import FeedForward
from glassmoe.model.families import UNBOUNDED, USUAL_WINDOW, text_settings
from glassmoe.model.shared_blocks import SharedBlocks
from glassmoe.model.subject import Place, Subject
from glassmoe.results import Result, omitted
from glassmoe.text.evaluation import EvaluationText

from .saved import save_measure

LOGITS = 1 << 23
"""Logits of one forward pass, at most, unless a single window has more: 32 MiB in float32."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LastWords(Result):
    """The last words of passages, each predicted from the words before it."""

    perplexity: float | None
    """Per word; None without words, or above 1e300."""
    accuracy: float | None
    """Share of words whose tokens are all the most likely ones; None without words."""
    words: int


@dataclass(frozen=True, kw_only=True)
class TextPerplexity(Result):
    """The loss of one model on one text."""

    what: str | None = omitted()
    """`model`, or the name of the coder that was in place of its target."""
    on: str | None = omitted()
    """Name of the text."""
    loss: float
    """Mean cross-entropy, in nats per token."""
    loss_standard_error: float | None
    """Standard error of `loss` over windows; None for a single window."""
    perplexity: float
    """exp(`loss`), per token."""
    word_perplexity: float | None
    """exp(nats / `words`); None above 1e300."""
    bits_per_byte: float
    tokens: int
    """Tokens that were predicted."""
    words: int
    """Words of the texts, separated by white space."""
    bytes: int
    """Bytes of the texts in UTF-8."""
    windows: int
    window: int
    """Tokens of a window."""
    stride: int
    """Tokens that each further window of a document predicts."""
    documents: int
    skipped: dict[str, int]
    """Reason -> documents that were left out."""
    not_utf8: int
    """Documents with bytes that are not UTF-8."""
    source: str
    """Where the text was read from."""
    sha256: str
    """Sha256 of the text."""
    about: str
    """How the text was changed."""
    last_word: LastWords | None = omitted()
    """For passages: their last words."""

    def note(self) -> str:
        """A line about the text that was read."""
        skipped = "".join(f"; {count:,} left out ({reason})" for reason, count in self.skipped.items())
        repaired = f"; {self.not_utf8:,} were not all UTF-8" if self.not_utf8 else ""
        stride = "non-overlapping" if self.stride == self.window else f"stride {self.stride:,}"
        return (
            f"{self.on}: {self.source}, sha256 {self.sha256[:16]}, {self.about}; {self.documents:,} documents, "
            f"{self.words:,} words, {self.bytes:,} bytes, {self.windows:,} windows of {self.window:,} tokens, "
            f"{stride}{skipped}{repaired}"
        )


@dataclass(frozen=True)
class TextPerplexityResult(Result):
    """The losses of a model, and of the model with each coder in place, on each text."""

    FORMATS: ClassVar = {
        "loss (nats)": ".4f", "+-": ".4f", "perplexity": ".2f", "per word": ".2f", "tokens": ",", "accuracy": ".1%",
    }  # fmt: skip

    texts: list[TextPerplexity]
    """One entry for each model and text."""

    def to_json(self) -> Any:
        return self.to_dict()["texts"]

    def rows(self) -> list[dict[str, Any]]:
        several = len({text.what for text in self.texts}) > 1
        passages = any(text.last_word for text in self.texts)
        rows = []
        for text in self.texts:
            head = {"what": text.what} if several else {}
            row = {
                **head,
                "on": f"{text.on}, whole passage" if text.last_word else text.on,
                "loss (nats)": text.loss,
                "+-": text.loss_standard_error,
                "perplexity": text.perplexity,
                "per word": text.word_perplexity,
                "bits per byte": text.bits_per_byte,
                "tokens": text.tokens,
                **({"accuracy": None} if passages else {}),
            }
            rows.append(row)
            if (last := text.last_word) is not None:
                on = f"{text.on}, last word"
                rows.append({**head, "on": on, "per word": last.perplexity, "accuracy": last.accuracy})
        return rows

    def notes(self) -> list[str]:
        return list({text.on: text.note() for text in self.texts}.values())


def evaluate_texts(
    subject: Subject,
    readers: Mapping[str, Reader],
    texts: Sequence[EvaluationText],
    *,
    window: int | None = None,
    stride: int | None = None,
    base: bool = True,
) -> TextPerplexityResult:
    """`text_perplexities` of a model and of the model with each of its coders in place, on each text.

    `readers`: the coders among them are used. `window`: tokens of a window; by default the row length of the run's
    training, or the model's whole context. `base`: if there are coders, also measure the model without them. Saves the
    measure `ppl-TEXT` of the run or of each coder. ValueError for a window beyond the context and for a model that does
    not read text.
    """
    kind = subject.kind()
    if kind.tokenizer is None:
        raise ValueError(
            f"{subject.name} reads games as {kind.name}, not text; measure its loss with eval ppl without --on"
        )
    length = _window(subject, window)
    coders = {name: reader for name, reader in readers.items() if reader.folder is not None}
    passes = Passes(subject.model, sources(coders), base)
    folders: dict[str | None, Path | None] = {name: reader.folder for name, reader in coders.items()}
    if not coders and subject.config is not None:
        folders[None] = Path(subject.name)
    results: dict[str | None, list[TextPerplexity]] = {name: [] for name in passes.names}
    for text in texts:
        try:
            by_name = text_perplexities(passes, kind, text, length, stride)
        except (IndexError, RuntimeError) as error:
            if window is not None or subject.context < UNBOUNDED:
                raise
            raise ValueError(
                f"{subject.name} cannot read {length:,} tokens at once, and its config.json does not say how many "
                f"it can read; pass --window with that number"
            ) from error
        for name, result in by_name.items():
            folder = folders.get(name)
            if folder is not None:
                save_measure(folder, f"ppl-{text.name}", result, text.sha256)
            results[name].append(replace(result, what=name or "model", on=text.name))
    return TextPerplexityResult([result for by_text in results.values() for result in by_text])


def _window(subject: Subject, window: int | None) -> int:
    if window is not None:
        if window > subject.context:
            raise ValueError(f"--window {window} is more than the context of {subject.name}, {subject.context} tokens")
        return window
    if subject.config is not None:
        # A training row has one token more than the model reads.
        return min(subject.context, int(subject.config.data.rows.split(":")[1]) - 1)
    return subject.context if subject.context < UNBOUNDED else USUAL_WINDOW


class Window(NamedTuple):
    """A window reads a document's ids from `begin` to before `end`; the last `new` of them predict the next ids."""

    begin: int
    end: int
    new: int


def windows(targets: int, window: int, stride: int | None = None) -> list[Window]:
    """The windows of a document with `targets` tokens after its start. ValueError for a stride outside 1..window."""
    stride = window if stride is None else stride
    if window < 1 or not 1 <= stride <= window:
        raise ValueError(f"a stride of {stride} does not fit windows of {window} tokens; give 1 to {window}")
    cuts: list[Window] = []
    done = 0
    while done < targets:
        new = min(stride if cuts else window, targets - done)
        done += new
        cuts.append(Window(max(0, done - window), done, new))
    return cuts


class Passes:
    """The passes of a model over the same tokens: by itself, and with each of some coders in place of its target. The
    blocks before a place are computed once for all of them (`SharedBlocks`). `names`: of the passes, in their order;
    None is the model by itself, as a coder may have any name."""

    def __init__(self, model: Any, coders: Mapping[str, tuple[FeedForward, Place]] | None = None, base: bool = True):
        """`base`: if there are coders, also make the pass of the model by itself."""
        self.model, self._coders = model, coders or {}
        self._base = base or not self._coders
        self.names: list[str | None] = [*([None] if self._base else []), *self._coders]
        places = list(dict.fromkeys(place for _, place in self._coders.values()))
        self._shared = SharedBlocks(model, places) if len(self.names) > 1 else None

    def logits(self, ids_BS: Tensor) -> Iterator[tuple[str | None, Tensor]]:
        """The name and the logits (B, S, V), float32, of each pass."""
        if self._shared is None:
            (name,) = self.names
            yield name, self._pass(ids_BS, name)
            return
        with self._shared.kept():
            own_BSV = self._pass(ids_BS)
        if self._base:
            yield None, own_BSV
        del own_BSV
        for name, (_, place) in self._coders.items():
            with self._shared.skipped(place):
                logits_BSV = self._pass(ids_BS, name)
            yield name, logits_BSV

    def _pass(self, ids_BS: Tensor, name: str | None = None) -> Tensor:
        with nullcontext() if name is None else spliced(self.model, *self._coders[name]):
            logits_BSV: Tensor = self.model(input_ids=ids_BS, use_cache=False).logits.float()
        return logits_BSV


class Scores(NamedTuple):
    """The losses of documents in one pass, token by token."""

    nats: list[Float32]
    """Nats of each token, document by document."""
    hits: list[npt.NDArray[np.bool_]]
    """Whether each token was the most likely one, document by document; empty unless requested."""
    windows: list[tuple[float, int]]
    """Nats and predicted tokens of every window."""


@torch.no_grad()
def score(
    passes: Passes, rows: Sequence[Tokens], window: int, stride: int | None = None, likeliest: bool = False
) -> dict[str | None, Scores]:
    """Name of each pass -> cross-entropy of every token of `rows` (token ids, a start token first) but the first, by
    windows."""
    model = passes.model
    device = next(model.parameters()).device
    cut = [(row, part) for row, ids in enumerate(rows) for part in windows(len(ids) - 1, window, stride)]
    cut.sort(key=lambda pair: pair[1].begin - pair[1].end)
    scores: dict[str | None, Scores] = {}
    for name in passes.names:
        nats = [np.zeros(max(len(ids) - 1, 0), np.float32) for ids in rows]
        scores[name] = Scores(nats, [np.zeros_like(nats_N, np.bool_) for nats_N in nats] if likeliest else [], [])
    was_training = model.training
    model.eval()
    at = 0
    while at < len(cut):
        longest = cut[at][1].end - cut[at][1].begin
        some = cut[at : at + max(1, LOGITS // (longest * text_settings(model).vocab_size))]
        at += len(some)
        ids_BS = np.zeros((len(some), longest), np.int64)
        targets_BS = np.full((len(some), longest), -100, np.int64)
        for place, (row, (begin, end, new)) in enumerate(some):
            ids_BS[place, : end - begin] = rows[row][begin:end]
            targets_BS[place, end - begin - new : end - begin] = rows[row][end - new + 1 : end + 1]
        labels_BS = torch.from_numpy(targets_BS).to(device)
        # Padding follows the tokens, so a causal model does not read it.
        for name, logits_BSV in passes.logits(torch.from_numpy(ids_BS).to(device)):
            loss_T = F.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), reduction="none")
            loss_BS = loss_T.view_as(labels_BS).cpu().numpy()
            hit_BS = (logits_BSV.argmax(-1) == labels_BS).cpu().numpy() if likeliest else None
            nats, hits, of_windows = scores[name]
            for place, (row, (begin, end, new)) in enumerate(some):
                inside = slice(end - begin - new, end - begin)
                nats[row][end - new : end] = loss_BS[place, inside]
                if hit_BS is not None:
                    hits[row][end - new : end] = hit_BS[place, inside]
                of_windows.append((float(loss_BS[place, inside].sum(dtype=np.float64)), new))
    model.train(was_training)
    return scores


def text_perplexities(
    passes: Passes, kind: TokenKind, text: EvaluationText, window: int, stride: int | None = None
) -> dict[str | None, TextPerplexity]:
    """Name of each pass -> its loss on a text in windows of `window` tokens; `kind`: what the model's tokens are.
    ValueError for text without a token to predict, and for ids beyond the model's vocabulary."""
    rows = [kind.encode(document) for document in text.texts]
    highest = max(int(row.max()) for row in rows)
    known = text_settings(passes.model).vocab_size
    if highest >= known:
        raise ValueError(
            f"the tokenizer has the id {highest}, but the model has {known} ids; use the tokenizer of the model"
        )
    if not any(len(row) > 1 for row in rows):
        raise ValueError(f"{text.name} ({text.source}) has no token to predict; give another text")
    scores = score(passes, rows, window, stride, likeliest=text.passages)
    return {name: _perplexity(kind, text, rows, window, stride, each) for name, each in scores.items()}


def _perplexity(
    kind: TokenKind, text: EvaluationText, rows: Sequence[Tokens], window: int, stride: int | None, scores: Scores
) -> TextPerplexity:
    tokens = sum(len(row) - 1 for row in rows)
    nats_W, tokens_W = (np.array(values, np.float64) for values in zip(*scores.windows, strict=True))
    nats = float(nats_W.sum())
    loss = nats / tokens
    words = sum(len(document.split()) for document in text.texts)
    size = sum(len(document.encode("utf-8", "surrogatepass")) for document in text.texts)
    spread = math.sqrt(float(((nats_W - loss * tokens_W) ** 2).sum())) / tokens
    return TextPerplexity(
        loss=loss,
        loss_standard_error=spread if len(nats_W) > 1 else None,
        perplexity=math.exp(loss),
        word_perplexity=_exp(nats, words),
        bits_per_byte=nats / math.log(2) / size,
        tokens=tokens,
        words=words,
        bytes=size,
        windows=len(nats_W),
        window=window,
        stride=window if stride is None else stride,
        documents=len(rows),
        skipped=text.skipped,
        not_utf8=text.not_utf8,
        source=text.source,
        sha256=text.sha256,
        about=text.about,
        last_word=_last_words(kind, text.texts, rows, scores) if text.passages else None,
    )


def _last_words(kind: TokenKind, texts: Sequence[str], rows: Sequence[Tokens], scores: Scores) -> LastWords:
    nats, right = [], []
    for text, row, nats_N, hits_N in zip(texts, rows, scores.nats, scores.hits, strict=True):
        before, space, _ = text.rstrip().rpartition(" ")
        if not space or not before.strip():
            continue  # a passage of one word has nothing before it
        # The tokens after those of the beginning; a token that spans both belongs to the word.
        first = min(len(kind.encode(before)), len(row) - 1) - 1
        # White space after the word does not belong to it.
        end = max(first + 1, len(kind.encode(text.rstrip())) - 1)
        nats.append(float(nats_N[first:end].sum(dtype=np.float64)))
        right.append(bool(hits_N[first:end].all()))
    if not nats:
        return LastWords(None, None, 0)
    return LastWords(_exp(sum(nats), len(nats)), sum(right) / len(right), len(nats))


def _exp(nats: float, count: int) -> float | None:
    return math.exp(nats / count) if count and nats / count < 690 else None
