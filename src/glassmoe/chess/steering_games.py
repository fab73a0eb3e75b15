"""How a chess model's moves change when one of its features is raised: are they still legal, are they other moves?

Every feature is raised at every token by a multiple of its own greatest strength on the games, so that layers with
different scales are compared fairly. Positions are where White is to move; moves are written greedily, so that only the
edit makes a difference.

Legend: P positions, N tokens before each, F features, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.data.corpus import Corpus, Rows
from glassmoe.data.tokens import TEXT, TokenKind, Tokens
from glassmoe.inspect.edit import Edit, spliced
from glassmoe.model import FeedForward
from glassmoe.model.subject import Place, Subject, activations
from glassmoe.results import Result, stored_as

from .domain import first_moves
from .tokens import CHARACTERS, MOVES

LONGEST_MOVE = 8
"""Characters of a move with the space after it, such as `Qa1xb2+ `."""
LEAST_TOKENS = {CHARACTERS.name: 40, MOVES.name: 9}
"""Tokens before a position: about four moves of each side, beyond the best known openings."""


@dataclass(frozen=True)
class RaisedFeature(Result):
    """What raising one feature does to the model's moves."""

    feature: int
    amount: float
    """What was added to the feature's strength."""
    legal: float
    """Share of the moves that are legal."""
    changed: float
    """Share of the positions at which the move is another."""
    shift: float
    """KL of the next token's distribution from the unedited one, in nats, mean over positions."""


@dataclass(frozen=True)
class SteeringGamesResult(Result):
    """What raising single features of a layer does to the model's moves."""

    times: float
    """By how many times its greatest strength each feature was raised."""
    positions: int
    legal: float
    """Share of the model's own moves that are legal, without an edit."""
    features: list[RaisedFeature] = stored_as("rows")

    def rows(self) -> list[dict[str, object]]:
        return [feature.to_dict() for feature in self.features]


def positions(corpus: Corpus, count: int, context: int) -> list[Tokens]:
    """Beginnings of `count` validation games, equally long, each ending where White is to move: the length that most
    games share. ValueError when there is none."""
    kind = corpus.kind
    if kind.name == TEXT:
        raise ValueError(f"{corpus.path} holds text; moves are those of a model of games")
    least = LEAST_TOKENS[kind.name]
    rows = Rows(corpus.split("valid"), f"games:{min(context - LONGEST_MOVE, 3 * least)}")
    tokens_RN, lengths_R = rows.batch(np.arange(min(len(rows), 20_000)))
    ends_RN = np.arange(1, tokens_RN.shape[1] + 1)
    if kind.name == MOVES.name:
        turn_RN = np.broadcast_to(ends_RN % 2 == 1, tokens_RN.shape)
    else:
        turn_RN = tokens_RN == kind.vocabulary.index(".")
    turn_RN = turn_RN & (ends_RN > least) & (ends_RN < lengths_R[:, None])
    shared = Counter(np.nonzero(turn_RN)[1].tolist()).most_common(1)
    if not shared:
        raise ValueError(
            f"{corpus.path} has no validation game of more than {least} {kind.counted}; prepare more games"
        )
    ends = shared[0][0] + 1
    return [row[:ends] for row in tokens_RN[turn_RN[:, ends - 1]][:count]]


@torch.no_grad()
def steered_games(
    subject: Subject,
    layer: FeedForward,
    place: Place,
    prompts: Sequence[Tokens],
    times: float,
    features: int = 100,
    seed: int = 0,
) -> SteeringGamesResult:
    """Raise each of `features` features, drawn from those that fire on the games, by `times` its greatest strength."""
    kind = subject.kind()
    ids_PN = torch.from_numpy(np.stack(prompts).astype(np.int64)).to(next(subject.model.parameters()).device)
    maxima_F = _maxima(subject, layer, place, ids_PN)
    alive = np.flatnonzero(maxima_F > 0)
    chosen = np.sort(np.random.default_rng(seed).permutation(alive)[:features])
    texts = [kind.decode(row) for row in prompts]
    with spliced(subject.model, layer, place, None):
        own, own_PV = _moves(subject, ids_PN, kind)
    rows = []
    for feature in chosen.tolist():
        amount = times * float(maxima_F[feature])
        with spliced(subject.model, layer, place, Edit("add", (feature,), amount)):
            moves, log_PV = _moves(subject, ids_PN, kind)
        rows.append(
            RaisedFeature(
                feature=feature,
                amount=amount,
                legal=_legal(kind, texts, moves),
                changed=float(np.mean([a != b for a, b in zip(own, moves, strict=True)])),
                shift=float(F.kl_div(log_PV, own_PV, reduction="batchmean", log_target=True)),
            )
        )
    return SteeringGamesResult(times, len(prompts), _legal(kind, texts, own), rows)


def _maxima(subject: Subject, layer: FeedForward, place: Place, ids_PN: Tensor) -> npt.NDArray[np.float32]:
    x_TD = activations(subject.model, [place], ids_PN)[place].x.flatten(0, 1)
    greatest_F = torch.zeros(layer.num_features)
    for part_TD in x_TD.split(1024):
        greatest_F = torch.maximum(greatest_F, layer.features(part_TD).to_dense().amax(0).float().cpu())
    maxima_F: npt.NDArray[np.float32] = greatest_F.numpy()
    return maxima_F


def _moves(subject: Subject, ids_PN: Tensor, kind: TokenKind) -> tuple[list[str], Tensor]:
    """The likeliest move at each position, as text with what it goes on from, and log-probabilities (P, V) of the next
    token."""
    new = 1 if kind.name == MOVES.name else LONGEST_MOVE
    output = subject.model.generate(
        ids_PN,
        attention_mask=torch.ones_like(ids_PN),
        max_new_tokens=new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    log_PV = F.log_softmax(output.logits[0].float(), dim=-1)
    return [kind.decode(row) for row in output.sequences.cpu().numpy()], log_PV


def _legal(kind: TokenKind, prompts: Sequence[str], texts: Sequence[str]) -> float:
    return float(np.mean([first_moves(kind, p, [text])[1] for p, text in zip(prompts, texts, strict=True)]))
