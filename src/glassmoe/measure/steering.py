"""How a model's continuations change when some of its features are edited at every token.

`shift` is the mean over positions of KL(model || edited model), in nats. Of text, the perplexity of the continuations
under the model as it is tells broken text from text about something else. Where a domain has rules (the moves of a
game), the first step of each continuation is judged by them: the share that is allowed, and the total variation
distance (half the sum of the differences) between the steps without and with the edit.

`specialisation` is the protocol of the Mixture of Decoders paper (Oldfield et al. 2025): add an amount to one feature,
write several texts, and measure how much they are about one thing and how fluent they are. The paper asks two language
models. Here the judges are offline: `agreement` is the mean cosine between the texts of a feature, where a text is the
mean over its new tokens of the last block's output, less the mean of reference texts without an edit; `fluency` is the
geometric mean probability of the new tokens under the model as it is.

Legend: B texts, N tokens, V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.data.domains import domain
from glassmoe.data.tokens import TokenKind, Tokens
from glassmoe.inspect.edit import Edit, spliced
from glassmoe.inspect.sample import Sampling, sampled
from glassmoe.model import FeedForward
from glassmoe.model.subject import Place, Subject, replaced
from glassmoe.results import Result, omitted, stored_as
from glassmoe.text.spelling import Spelling

SHOWN = 8
"""Tokens whose probability rises or falls most that are listed."""
REFERENCE = 4
"""Reference texts for each text of a feature. The error of their mean, which all texts of a feature share, adds about
1 / (n + 1) to an agreement, for n reference texts."""


@dataclass(frozen=True)
class Continuations(Result):
    """What a model wrote after the prompt."""

    texts: list[str]
    """The texts, prompt included."""
    perplexity: float | None = omitted()
    """Of text: per new token, under the model as it is."""
    allowed: float | None = stored_as("legal", omit_none=True)
    """Where the domain has rules: share of the first steps that they allow."""
    steps: dict[str, float] | None = stored_as("moves", omit_none=True)
    """First step after the prompt -> share of the texts that take it, the most frequent first."""

    def summary(self) -> str:
        """The numbers, in brackets."""
        if self.steps is not None:
            steps = ", ".join(f"{step or '(none)'} {share:.0%}" for step, share in list(self.steps.items())[:5])
            return f"({self.allowed:.0%} of first moves legal: {steps})"
        return "" if self.perplexity is None else f"(perplexity {self.perplexity:.1f})"


@dataclass(frozen=True, kw_only=True)
class SteeringResult(Result):
    """What a model writes with its features as they are and with some of them edited."""

    reader: str | None = omitted()
    """Name of the layer or coder whose features were edited."""
    edit: str
    """The edit, such as `add 7 2`."""
    prompt: str
    before: Continuations
    """Without the edit."""
    after: Continuations
    """With the edit."""
    shift: float
    """Mean KL divergence of the next token's distribution from the unedited one, in nats per token, on the texts of
    `before`."""
    raised: list[list[Any]]
    """[text of a token, difference of probability] after the prompt, of the tokens that the edit makes likelier, most
    first."""
    lowered: list[list[Any]]
    """The same of the tokens that it makes less likely."""
    distance: float | None = omitted()
    """Where the domain has rules: total variation distance between the first steps of `before` and `after`, 0 to 1."""

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"when": when, "text": text}
            for when, written in (("before", self.before), ("after", self.after))
            for text in written.texts
        ]

    def table(self) -> str:
        lines = [
            f"{self.reader}: {self.edit}" if self.reader else self.edit,
            f"shift {digits(self.shift, 4)} nats a token",
        ]
        for when, written in (("before", self.before), ("after", self.after)):
            lines += ["", f"{when} {written.summary()}", *(f"  {text!r}" for text in written.texts)]
        for word, tokens in (("raised", self.raised), ("lowered", self.lowered)):
            lines += ["", f"{word}: " + ", ".join(f"{token!r} {digits(change, 3, '+')}" for token, change in tokens)]
        return "\n".join(lines)


def digits(value: float, places: int, sign: str = "") -> str:
    """A number with so many decimal places, or where these would hold one digit or none, with two digits."""
    small = 0 < abs(value) < 10 ** (1 - places)
    return f"{value:{sign}.1e}" if small else f"{value:{sign}.{places}f}"


@dataclass(frozen=True)
class RaisedTexts(Result):
    """Texts with one feature raised, judged offline."""

    feature: int | None
    """None for texts without an edit."""
    agreement: float | None
    """Mean cosine between the texts; None where fewer than two have tokens of their own."""
    fluency: float | None
    """Geometric mean probability of the new tokens under the model as it is; None without new tokens."""
    texts: list[str]
    """The texts without the prompt."""


def steered(
    subject: Subject, layer: FeedForward, place: Place, edit: Edit, prompt: str | None, sampling: Sampling
) -> SteeringResult:
    """What a model writes without and with an edit of a layer's or coder's features. Both are written with the features
    in place, so that they differ by the edit alone. `prompt`: by default the beginning of a sequence. ValueError for a
    prompt that cannot be read."""
    kind = subject.kind()
    prompt = kind.prompt if prompt is None else prompt
    subject.encode(prompt, prompt=True)  # raises for a token that the model cannot read
    written: list[list[Tokens]] = []
    read = 0
    for change in (None, edit):
        with spliced(subject.model, layer, place, change):
            rows, read = sampled(subject.model, prompt, kind, sampling)
        written.append(rows)
    with torch.no_grad():
        shift = _shift(subject, layer, place, edit, written[0], read, kind)
    first_steps = domain(kind.domain).first_steps
    before, after = (
        Continuations(texts, _perplexity(subject, rows, read))
        if first_steps is None
        else _by_rules(texts, *first_steps(kind, prompt, texts))
        for rows, texts in ((rows, [kind.decode(row) for row in rows]) for rows in written)
    )
    distance = None
    if before.steps is not None and after.steps is not None:
        steps = {*before.steps, *after.steps}
        distance = sum(abs(before.steps.get(step, 0) - after.steps.get(step, 0)) for step in steps) / 2
    return SteeringResult(
        edit=str(edit), prompt=prompt, before=before, after=after, **shift._asdict(), distance=distance
    )


def _by_rules(texts: list[str], steps: Sequence[str], allowed: float) -> Continuations:
    shares = {step: count / len(steps) for step, count in Counter(steps).most_common()}
    return Continuations(texts, allowed=allowed, steps=shares)


def _perplexity(subject: Subject, rows: Sequence[Tokens], read: int) -> float | None:
    losses = [loss for row in rows for loss in _losses(subject.model, row, read)]
    return math.exp(float(np.mean(losses))) if losses else None


class Shift(NamedTuple):
    """How far an edit moves the distribution of the next token; fields as in `SteeringResult`."""

    shift: float
    raised: list[list[Any]]
    lowered: list[list[Any]]


def _shift(
    subject: Subject,
    layer: FeedForward,
    place: Place,
    edit: Edit,
    rows: Sequence[Tokens],
    read: int,
    kind: TokenKind,
) -> Shift:
    """The shift on texts whose first `read` tokens are the prompt."""
    total, positions = 0.0, 0
    first: tuple[Tensor, Tensor] | None = None
    for row in rows:
        own_NV, edited_NV = (_log_probabilities(subject.model, row, layer, place, change) for change in (None, edit))
        at = slice(read - 1, None)
        total += float(F.kl_div(edited_NV[at], own_NV[at], reduction="sum", log_target=True))
        positions += len(own_NV[at])
        if first is None:
            first = own_NV[read - 1].exp(), edited_NV[read - 1].exp()
    assert first is not None
    # Some models have more rows in their embedding than there are tokens.
    change_V = (first[1] - first[0])[: kind.size]
    order, spelling = change_V.argsort(descending=True).tolist(), Spelling(kind)
    return Shift(
        shift=total / positions,
        raised=[[spelling.one(i), float(change_V[i])] for i in order[:SHOWN] if change_V[i] > 0],
        lowered=[[spelling.one(i), float(change_V[i])] for i in order[::-1][:SHOWN] if change_V[i] < 0],
    )


def _log_probabilities(
    model: Any, row: Tokens, layer: FeedForward | None = None, place: Place | None = None, edit: Edit | None = None
) -> Tensor:
    """(N, V) float32 of one text, under the model as it is or with a layer's features in place."""
    ids_1N = torch.from_numpy(row.astype(np.int64)).unsqueeze(0).to(next(model.parameters()).device)
    inside = nullcontext() if layer is None or place is None else spliced(model, layer, place, edit)
    with inside:
        logits_1NV = model(input_ids=ids_1N, use_cache=False).logits
    return F.log_softmax(logits_1NV[0].float(), dim=-1)


@torch.no_grad()
def _losses(model: Any, row: Tokens, read: int) -> list[float]:
    """Nats of each token of a text after the first `read`, under the model as it is."""
    log_NV = _log_probabilities(model, row)
    return [-float(log_NV[i - 1, int(row[i])]) for i in range(read, len(row))]


@torch.no_grad()
def specialisation(
    subject: Subject,
    layer: FeedForward,
    place: Place,
    features: Sequence[int],
    amount: float,
    prompt: str,
    sampling: Sampling,
) -> list[RaisedTexts]:
    """Texts with `amount` added to each of `features` in turn, at every token. The first entry has texts without an
    edit. All entries are compared with the same reference texts, which have no edit either and another seed: around
    their own mean, n texts without an edit would have an agreement of -1 / (n - 1), whatever they say."""
    kind = subject.kind()

    def written(edit: Edit | None, sampling: Sampling) -> tuple[list[Tokens], int]:
        with spliced(subject.model, layer, place, edit):
            return sampled(subject.model, prompt, kind, sampling)

    rows, read = written(None, replace(sampling, seed=sampling.seed + 1, samples=REFERENCE * sampling.samples))
    reference = [_states(subject, row, read)[0] for row in rows if len(row) > read]
    middle_D = torch.stack(reference).mean(0) if reference else torch.zeros(subject.width)
    results: list[RaisedTexts] = []
    for feature in (None, *features):
        edit = None if feature is None else Edit("add", (feature,), amount)
        rows, read = written(edit, sampling)
        states, log_sum, count = [], 0.0, 0
        for row in rows:
            if len(row) > read:
                state_D, losses = _states(subject, row, read)
                states.append(state_D)
                log_sum, count = log_sum - sum(losses), count + len(losses)
        results.append(
            RaisedTexts(
                feature=feature,
                agreement=agreement(torch.stack(states) - middle_D) if len(states) > 1 else None,
                fluency=math.exp(log_sum / count) if count else None,
                texts=[kind.decode(row[read:]) for row in rows],
            )
        )
    return results


def agreement(states_BD: Tensor) -> float:
    """The mean cosine between each two rows; a row of zeros has a cosine of 0 with every row."""
    unit_BD = F.normalize(states_BD.double(), dim=1)
    texts = len(unit_BD)
    return float(((unit_BD.sum(0) ** 2).sum() - (unit_BD**2).sum()) / (texts * (texts - 1)))


def _states(subject: Subject, row: Tokens, read: int) -> tuple[Tensor, list[float]]:
    """The mean over new tokens of the last block's output, (D,) on the CPU, and the nats of these tokens."""
    caught: list[Tensor] = []

    def catch(_: Tensor, y: Tensor) -> Tensor:
        caught.append(y.float())
        return y

    with replaced(subject.model, subject.place(subject.layers - 1, "stream"), catch):
        losses = _losses(subject.model, row, read)
    return caught[0].reshape(-1, subject.width)[read:].mean(0).cpu(), losses
