"""What becomes of a model's writing when some of its features are changed at every token.

Of text: `shift`, the mean over positions of KL(model || changed model) in nats, and `perplexity`, that of what was
written under the model as it is, so that broken text is told from text about something else. Of chess: the share of
first moves that are legal, and the total variation distance (half the sum of the differences) between the moves that
are written without and with the change.

The protocol of the Mixture of Decoders paper (Oldfield et al. 2025) is `specialisation`: add an amount to one feature,
write several texts, and ask how much they are about one thing and how fluent they are. The paper asks two language
models. Offline, and said so wherever it is shown: `agreement` is the mean cosine between the texts of a feature, each
the mean over what was written of what leaves the model's last block, less the mean of texts without a change; `fluency`
is the geometric mean probability of the written tokens under the model as it is.

Legend: B texts, N tokens, V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

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

SHOWN = 8
"""Tokens whose probability rises or falls most that are listed."""


def steered(
    subject: Subject, layer: FeedForward, place: Place, edit: Edit, prompt: str | None, sampling: Sampling
) -> dict[str, Any]:
    """What a model writes with its features as they are (`before`) and with the edit (`after`), as plain values.

    Both are written with the features in their place, so that the two differ by the edit alone. Each has `texts`;
    of text `perplexity`, of chess `legal` (share) and `moves` (move -> share). Beside them `edit`, `prompt`, `shift`,
    `raised` and `lowered`, tokens after the prompt with the difference of their probability, and of chess `distance`.
    ValueError for a prompt that cannot be read.
    """
    kind = subject.kind()
    prompt = kind.prompt if prompt is None else prompt
    rows: dict[str, list[Tokens]] = {}
    found: dict[str, Any] = {"edit": str(edit), "prompt": prompt}
    given = 0
    for when, change in (("before", None), ("after", edit)):
        with spliced(subject.model, layer, place, change):
            rows[when], given = sampled(subject.model, prompt, kind, sampling)
        found[when] = {"texts": [kind.decode(row) for row in rows[when]]}
    with torch.no_grad():
        found |= _shift(subject, layer, place, edit, rows["before"], given, kind)
    first_steps = domain(kind.domain).first_steps
    if first_steps is None:
        for when, written in rows.items():
            losses = [loss for row in written for loss in _losses(subject.model, row, given)]
            found[when]["perplexity"] = math.exp(float(np.mean(losses))) if losses else None
        return found
    shares = {}
    for when in rows:
        moves, legal = first_steps(kind, prompt, found[when]["texts"])
        shares[when] = {move: count / len(moves) for move, count in Counter(moves).most_common()}
        found[when] |= {"legal": legal, "moves": shares[when]}
    every = {*shares["before"], *shares["after"]}
    found["distance"] = sum(abs(shares["before"].get(m, 0) - shares["after"].get(m, 0)) for m in every) / 2
    return found


def _shift(
    subject: Subject,
    layer: FeedForward,
    place: Place,
    edit: Edit,
    rows: Sequence[Tokens],
    given: int,
    kind: TokenKind,
) -> dict[str, Any]:
    """How far the edit moves the distribution of the next token, on the texts without it."""
    total, positions = 0.0, 0
    first: tuple[Tensor, Tensor] | None = None
    for row in rows:
        log_NV = [_log_probabilities(subject.model, row, layer, place, each) for each in (None, edit)]
        at = slice(given - 1, None)
        total += float(F.kl_div(log_NV[1][at], log_NV[0][at], reduction="sum", log_target=True))
        positions += len(log_NV[0][at])
        if first is None:
            first = log_NV[0][given - 1].exp(), log_NV[1][given - 1].exp()
    assert first is not None
    # Some models have more rows in their embedding than there are tokens.
    change_V = (first[1] - first[0])[: kind.size]
    order = change_V.argsort(descending=True).tolist()
    return {
        "shift": total / positions,
        "raised": [[kind.vocabulary[i], float(change_V[i])] for i in order[:SHOWN] if change_V[i] > 0],
        "lowered": [[kind.vocabulary[i], float(change_V[i])] for i in order[::-1][:SHOWN] if change_V[i] < 0],
    }


def _log_probabilities(
    model: Any, row: Tokens, layer: FeedForward | None = None, place: Place | None = None, edit: Edit | None = None
) -> Tensor:
    """(N, V) float32 of one text: of the model as it is, or with a layer's features in place."""
    ids_1N = torch.from_numpy(row.astype(np.int64)).unsqueeze(0).to(next(model.parameters()).device)
    inside = nullcontext() if layer is None or place is None else spliced(model, layer, place, edit)
    with inside:
        logits_1NV = model(input_ids=ids_1N, use_cache=False).logits
    return F.log_softmax(logits_1NV[0].float(), dim=-1)


@torch.no_grad()
def _losses(model: Any, row: Tokens, given: int) -> list[float]:
    """Nats of each token of a text after the first `given`, under the model as it is."""
    log_NV = _log_probabilities(model, row)
    return [-float(log_NV[i - 1, int(row[i])]) for i in range(given, len(row))]


@torch.no_grad()
def specialisation(
    subject: Subject,
    layer: FeedForward,
    place: Place,
    features: Sequence[int],
    amount: float,
    prompt: str,
    sampling: Sampling,
) -> list[dict[str, Any]]:
    """For each feature, with `amount` added to it at every token: {"feature", "agreement", "fluency", "texts"}, by the
    offline judges above; agreement is None where fewer than two texts have words of their own. The first entry has
    feature None: texts without a change."""
    kind = subject.kind()
    found: list[dict[str, Any]] = []
    middle_D: Tensor | None = None
    for feature in (None, *features):
        edit = None if feature is None else Edit("add", (feature,), amount)
        with spliced(subject.model, layer, place, edit):
            rows, given = sampled(subject.model, prompt, kind, sampling)
        states, log_sum, count = [], 0.0, 0
        for row in rows:
            if len(row) > given:
                state_D, losses = _read(subject, row, given)
                states.append(state_D)
                log_sum, count = log_sum - sum(losses), count + len(losses)
        if feature is None:
            middle_D = torch.stack(states).mean(0) if states else torch.zeros(subject.width)
        assert middle_D is not None
        found.append(
            {
                "feature": feature,
                "agreement": agreement(torch.stack(states) - middle_D) if len(states) > 1 else None,
                "fluency": math.exp(log_sum / count) if count else None,
                "texts": [kind.decode(row[given:]) for row in rows],
            }
        )
    return found


def agreement(states_BD: Tensor) -> float:
    """The mean cosine between each two rows."""
    unit_BD = F.normalize(states_BD.double(), dim=1)
    texts = len(unit_BD)
    return float(((unit_BD.sum(0) ** 2).sum() - texts) / (texts * (texts - 1)))


def _read(subject: Subject, row: Tokens, given: int) -> tuple[Tensor, list[float]]:
    """The mean of what leaves the last block after the prompt, (D,) on the CPU, and the nats of the tokens there."""
    caught: list[Tensor] = []

    def keep(_: Tensor, made: Tensor) -> Tensor:
        caught.append(made.float())
        return made

    with replaced(subject.model, subject.place(subject.layers - 1, "stream"), keep):
        losses = _losses(subject.model, row, given)
    return caught[0].reshape(-1, subject.width)[given:].mean(0).cpu(), losses
