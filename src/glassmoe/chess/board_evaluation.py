"""The boards measure: how well the features of every layer track the chess board, with controls.

Protocol (MoE-X chess evaluation; SAE_BoardGameEval, Karvonen et al. 2024): features are chosen on one set of games and
tested on another; the model was trained on neither. The measure reads the first 256 characters and 20 dots of each
game, or the first 40 tokens and the same 20 positions of a game as moves. A feature's maximum is taken over all tokens
of the first half of the training games, at most 1,000.

A wide layer can look interpretable because of its width alone. There are therefore two controls: the same architecture
with random weights and, for layers wider than a dense layer of equal active parameters, a random subsample of that
width.

Legend: G games, N tokens, B slots.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from glassmoe.console import bar, say
from glassmoe.data.corpus import Corpus, Sequences
from glassmoe.data.tokens import TEXT, Tokens
from glassmoe.inspect.harvest import Harvest, activations_at, harvests
from glassmoe.model import FeedForward, GlassForCausalLM
from glassmoe.model.random_twins import random_coder, random_twin
from glassmoe.model.subject import Site

from .board_counts import Float64
from .board_features import read_features
from .board_labels import dot_positions, label_games
from .board_properties import HEADLINE, STRATEGY
from .board_results import BoardScores, BoardsResult, FeatureReading, LayerBoards, SubsampleScores
from .boards import LayerScores, PreparedLabels, measure_layer, own_threshold_held_out, prepare_labels, random_subset
from .tokens import kind_of

CHARACTERS, DOTS, MAX_SAMPLE_GAMES = 256, 20, 1000
TOKENS_READ = {"characters": CHARACTERS, "moves": 2 * DOTS}
"""Tokens of a game that are read."""
FIRST_GAMES = 25
"""Games whose residual stream sets the bias of a control's coder."""
PROPERTIES = (HEADLINE, *STRATEGY)


def evaluate_boards(
    model: GlassForCausalLM,
    corpus: Corpus,
    *,
    games: int = 1000,
    test_corpus: Corpus | None = None,
    layers: Sequence[int] | None = None,
    controls: bool = True,
    workers: int | None = None,
    coder: FeedForward | None = None,
    site: Site = "stream",
    brief: bool = False,
) -> BoardsResult:
    """Coverage, held-out coverage and reconstruction of each layer, and what single features of the best layer (by
    reconstruction) detect.

    `games`: number of games that choose features; as many others test them. If too few games have 20 dots, fewer are
    used, with a message. Both sets come from the validation split of `corpus`; with `test_corpus` the second set comes
    from that corpus. `controls`: also measure the random-weight twin. `coder`: measure a coder that reads at `site` of
    the one layer in `layers` instead of the feed-forward layers; its control is a coder before its fit, on the twin's
    activations. `brief`: only the headline property, without strategy group, twin and single features, for curves
    during training. ValueError for a layer that does not exist, a context that is too short, and a lack of games.
    """
    check_games("the boards measure", model, corpus, test_corpus or corpus)
    chosen_layers = check_layers(model, layers)
    if coder is not None and len(chosen_layers) != 1:
        raise ValueError(f"a coder reads at one layer, not at {chosen_layers}; give layers=[that one]")
    splits = choose_games(corpus, test_corpus, games)
    games = len(splits["train"])
    properties = (HEADLINE,) if brief else PROPERTIES
    labels = _prepared_labels(tuple(splits["train"]), tuple(splits["test"]), properties, workers)
    sample = min(max(1, games // 2), MAX_SAMPLE_GAMES)
    inputs = [(*board_rows(part), sample if name == "train" else 0) for name, part in splits.items()]

    controls = controls and not brief
    progress = bar(len(chosen_layers) * (2 if controls else 1), "layers", "layer")
    entries: list[dict[str, Any]] = []
    scores = {}
    harvested = harvests(model, inputs, chosen_layers, coder, site=site)
    for layer, (train, test) in harvested.items():
        scores[layer] = _scores(train, test, labels)
        entry: dict[str, Any] = {"layer": layer, **_summary(scores[layer], train)}
        equal_width = model.config.active_width
        if scores[layer].alive > equal_width:
            subset = replace(train, alive_F=random_subset(train.alive_F, train.maxima_F, width=equal_width))
            entry["subsample"] = SubsampleScores(width=equal_width, **_numbers(_scores(subset, test, labels)))
        entries.append(entry)
        progress.update()
    # Coverage also counts features that only follow the time of the game, which all layers have. Reconstruction does
    # not.
    best = max(entries, key=lambda entry: entry["reconstruction"])["layer"]
    train, test = harvested.pop(best)
    reading = _Reading(train, test, scores[best])
    harvested.clear()  # the twin's activations need as much memory
    random_reading = None
    if controls:
        twins = random_twins(model, coder, chosen_layers[0], site, inputs)
        for entry, (layer, (train, test)) in zip(
            entries, harvests(twins[0], inputs, chosen_layers, twins[1], site=site).items(), strict=True
        ):
            random_scores = _scores(train, test, labels)
            entry["random"] = BoardScores(**_numbers(random_scores))
            if layer == best:
                random_reading = _Reading(train, test, random_scores)
            progress.update()
    progress.close()
    ffn = model.feed_forwards()[best] if coder is None else coder
    features = None
    if not brief:
        features = _features(
            ffn,
            reading,
            random_reading,
            splits["test"],
            board_labels(tuple(splits["test"]), properties, workers)[HEADLINE],
        )
    return BoardsResult(
        games=games,
        boards=games * DOTS,
        tested_on="the validation split" if test_corpus is None else _about(test_corpus),
        headline=HEADLINE,
        best_layer=best,
        layers=[LayerBoards(**entry) for entry in entries],
        **({} if features is None else vars(features)),
    )


def check_games(measure: str, model: GlassForCausalLM, *corpora: Corpus) -> None:
    """ValueError when a model does not read as much of a game as a measure reads, or corpora are of other tokens.
    `measure`: its name, for messages."""
    # A model with replaced layers is of another family, and reads text.
    tokens = getattr(model.config, "tokens", TEXT)
    if tokens not in TOKENS_READ:
        raise ValueError(
            f"{measure} reads chess games, but this model reads {tokens}; measure it with glassmoe eval ppl"
        )
    read = TOKENS_READ[tokens]
    if model.config.context < read:
        raise ValueError(
            f"{measure} reads {read} {tokens} of a game, but this model's context is {model.config.context}; "
            f"train with data.rows games:{read} or longer rows"
        )
    for each in corpora:
        each.require(tokens)


class _Reading(NamedTuple):
    """The part of a layer's measures that shows what its single features detect."""

    train: Harvest
    test: Harvest
    scores: LayerScores

    def held_out_f1(self, labels_NB: Any) -> Float64:
        return own_threshold_held_out(self.scores.coverage, self.test.rows, labels_NB, self.train.maxima_F)


@functools.lru_cache(maxsize=8)
def board_labels(texts: tuple[str, ...], properties: tuple[str, ...], workers: int | None) -> dict[str, Any]:
    """`label_games`, cached because a suite measures many models on the same games. Do not change the arrays."""
    say(f"labelling {len(texts) * DOTS:,} boards of {len(texts):,} games")
    return label_games(texts, properties, dots=DOTS, workers=workers)


@functools.lru_cache(maxsize=2)
def _prepared_labels(
    train: tuple[str, ...], test: tuple[str, ...], properties: tuple[str, ...], workers: int | None
) -> PreparedLabels:
    """The labels of both sets of games, cached as `board_labels` are."""
    return prepare_labels(*(board_labels(texts, properties, workers) for texts in (train, test)))


def choose_games(corpus: Corpus, test_corpus: Corpus | None, count: int) -> dict[str, list[str]]:
    """At most `count` games to choose features on (`train`), and as many to test them on (`test`)."""
    where = f"the validation split of {corpus.path}"
    if test_corpus is None:
        texts = board_games(corpus.split("valid"), 2 * count)
        half = len(texts) // 2
        train, test = texts[:half], texts[half : 2 * half]
    elif test_corpus.fingerprint == corpus.fingerprint:
        raise ValueError(f"{test_corpus.path} holds the games of the run itself; test on other games, or leave it out")
    else:
        where += f" or in {test_corpus.path}"
        train = board_games(corpus.split("valid"), count)
        test = [text for split in ("valid", "train") for text in board_games(test_corpus.split(split), count)]
    games = min(count, len(train), len(test))
    if games == 0:
        raise ValueError(
            f"there are fewer than 2 games with {DOTS} moves of White in {TOKENS_READ[corpus.tokens]} {corpus.tokens} "
            f"in {where}. The measure needs games to choose features on and others to test them (1,000 each are "
            f"better): prepare more games"
        )
    if games < count:
        say(f"reading {games} + {games} games instead of {count} + {count}: no more are usable")
    return {"train": train[:games], "test": test[:games]}


def _about(corpus: Corpus) -> str:
    which = f"synthetic games of seed {corpus.manifest['seed']}" if corpus.manifest.get("synthetic") else "other games"
    return f"{which} ({corpus.fingerprint[:12]})"


def random_twins(
    model: GlassForCausalLM, coder: FeedForward | None, layer: int, site: Site, inputs: Sequence[Any]
) -> tuple[GlassForCausalLM, FeedForward | None]:
    """The random-weight twin of a model and, with a coder, a coder of the twin before its fit."""
    twin = random_twin(model, games_of(*inputs[0][:2]))
    if coder is None:
        return twin, None
    tokens_GN, lengths_G = (each[:FIRST_GAMES] for each in inputs[0][:2])
    read = activations_at(twin, layer, site, tokens_GN)
    inside_GN = torch.from_numpy(np.arange(tokens_GN.shape[1]) < lengths_G[:, None]).to(read.x.device)
    return twin, random_coder(coder, read.x[inside_GN], read.y[inside_GN])


def games_of(tokens_GN: Tokens, lengths_G: npt.NDArray[np.int64]) -> Iterator[Tokens]:
    """The tokens of each game, without its padding."""
    return (row[:length] for row, length in zip(tokens_GN, lengths_G, strict=True))


def _features(
    ffn: FeedForward, reading: _Reading, random_reading: _Reading | None, texts: Sequence[str], labels_NB: Any
) -> FeatureReading:
    """`read_features` of one layer, with the F1 of the same layer with random weights as baseline."""
    expert_hidden = ffn.num_features // ffn.num_experts if ffn.num_experts > 1 else None
    return read_features(
        texts,
        DOTS,
        reading.test,
        reading.train.maxima_F,
        reading.scores.coverage,
        reading.held_out_f1(labels_NB),
        None if random_reading is None else random_reading.held_out_f1(labels_NB),
        labels_NB,
        expert_hidden,
    )


def board_games(games: Sequences, limit: int) -> list[str]:
    """The first `limit` games that have 20 dots in the tokens that are read (`TOKENS_READ`), cut to these tokens."""
    texts = []
    for i in range(len(games)):
        text = games.text(i)
        kind = kind_of(text)
        text = kind.first(text, TOKENS_READ[kind.name])
        if len(dot_positions(text, DOTS)) == DOTS:
            texts.append(text)
        if len(texts) == limit:
            break
    return texts


def board_rows(texts: Sequence[str]) -> tuple[Tokens, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Token ids (G, N), padded; lengths (G,) and the positions of the dots (G, 20), in tokens."""
    kind = kind_of(texts[0])
    tokens = [kind.encode(text) for text in texts]
    tokens_GN = np.zeros((len(texts), TOKENS_READ[kind.name]), dtype=kind.dtype)
    for row, ids in zip(tokens_GN, tokens, strict=True):
        row[: len(ids)] = ids
    return tokens_GN, np.array([len(ids) for ids in tokens]), np.array([dot_positions(text, DOTS) for text in texts])


def _scores(train: Harvest, test: Harvest, labels: PreparedLabels) -> LayerScores:
    return measure_layer(train.rows, test.rows, train.maxima_F, train.alive_F, labels)


def _numbers(scores: LayerScores) -> dict[str, Any]:
    return {
        "coverage": scores.coverage.value,
        "held_out_coverage": scores.held_out.value,
        "reconstruction": scores.reconstruction.value,
        "strategy_coverage": scores.strategy_coverage,
        "strategy_held_out_coverage": scores.strategy_held_out,
        "strategy_reconstruction": scores.strategy_reconstruction,
    }


def _summary(scores: LayerScores, train: Harvest) -> dict[str, Any]:
    return {
        **_numbers(scores),
        "coverage_threshold": scores.coverage.threshold,
        "coverage_own_thresholds": scores.coverage.own_threshold_value,
        "reconstruction_threshold": scores.reconstruction.threshold,
        "reconstruction_precision": scores.reconstruction.precision,
        "reconstruction_recall": scores.reconstruction.recall,
        "reconstruction_last": scores.reconstruction.last,
        "properties": {name: one[0].value for name, one in scores.by_property.items()},
        "width": scores.width,
        "alive": scores.alive,
        "l0": train.l0,
        "l0_boards": scores.l0,
    }


def check_layers(model: GlassForCausalLM, layers: Sequence[int] | None) -> list[int]:
    count = model.config.layers
    chosen = list(range(count)) if layers is None else list(layers)
    for layer in chosen:
        if not 0 <= layer < count:
            raise ValueError(f"layer {layer} is not in this model: it has layers 0 to {count - 1}")
    if not chosen:
        raise ValueError("no layer to measure")
    return chosen
