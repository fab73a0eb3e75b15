"""`glassmoe reproduce trace`: attribution graphs of many prompts, as numbers: how many nodes hold 80% of the influence,
and how well a graph predicts what changes of features do in the model.

Few nodes mean that a prediction can be read. At equal loss this compares architectures, as the size of circuits does in
Gao et al. 2025 ("Weight-sparse transformers have interpretable circuits").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from glassmoe.coders.names import require_coder
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.inspect.model import Model
from glassmoe.inspect.readers import open_readers
from glassmoe.model.subject import Subject
from glassmoe.results import Result, markdown_table, omitted, stored_as
from glassmoe.tracing.acting import compared
from glassmoe.tracing.tracer import FEATURES, Tracer

from .intervals import interval, plus_minus
from .results_file import ResultsFile, merged, option_words, origin, section
from .trace_holds import HeldAgreement, TraceInterval, agreements, holds_of
from .traced_prompts import FinishedPrompts, TracedPrompt, traced_prompt

CHESS_LENGTHS, TEXT_LENGTHS = (16, 60), (8, 16)
"""Tokens of a prompt, from the shortest to the longest, where none are given."""


@dataclass(frozen=True, kw_only=True)
class TraceMean(Result):
    """The mean of a number over prompts, and half of its 95% interval."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> TraceMean:
        mean, half = interval(values)
        return cls(mean=mean, half=half)

    def text(self, digits: int) -> str:
        return plus_minus(self.mean, self.half, digits)


@dataclass(frozen=True, kw_only=True)
class TraceRow(Result):
    """The graphs of one model."""

    name: str
    kind: str
    """Kinds of the layers or coders that were traced."""
    prompts: int
    tokens: TraceMean
    """Tokens of a prompt."""
    loss: TraceMean
    """Cross-entropy of the token that follows the prompt, in nats."""
    active: TraceMean
    """Active features per token of the prompt and layer."""
    nodes_for_80: TraceMean
    """Nodes that hold 80% of the influence."""
    direct_for_80: TraceMean
    """Nodes that hold 80% of the direct effects."""
    replacement: TraceMean
    completeness: TraceMean
    correlation: float | None
    """Correlation of predicted and measured changes, over all prompts together."""
    following: float | None = None
    """The same, with predictions in which the scales of norms follow the stream."""
    sign_agreement: TraceMean | None
    """Share of the changes whose direction was predicted, by prompt."""
    changes: int
    """Changes that were made."""
    seconds: TraceMean
    """Time of a graph."""
    nodes: list[int] = field(default_factory=list)
    """`nodes_for_80` of each prompt."""
    holding: list[HeldAgreement] | None = omitted()
    """The agreement with some patterns held in the model; None in files of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class TraceResults(ResultsFile):
    """The graphs of several models."""

    suite: str = "trace"
    data_sha256: str | None = None
    """Fingerprint of the corpus whose validation split the prompts begin."""
    entries: list[TraceRow] = stored_as("rows", default_factory=list)

    SHARED: ClassVar[tuple[str, ...]] = ("data_sha256",)

    def joined(self, old: Self, path: Path) -> Self:
        entries = merged(old.entries, self.entries, lambda row: row.name)
        return super().joined(old, path).changed(entries=entries)

    def sections(self, name: str) -> Iterable[str | None]:
        del name
        lines = [
            [
                row.name,
                row.kind,
                row.prompts,
                row.loss.text(3),
                row.active.text(0),
                row.nodes_for_80.text(0),
                row.direct_for_80.text(0),
                None if row.correlation is None else f"{row.correlation:.2f}",
                None if row.following is None else f"{row.following:.2f}",
                None if row.sign_agreement is None else row.sign_agreement.text(2),
                row.replacement.text(2),
                row.completeness.text(2),
                row.seconds.text(1),
            ]
            for row in self.entries
        ]
        columns = [
            *("model", "features", "prompts", "loss (nats)", "active", "nodes for 80%", "direct for 80%"),
            *("correlation", "with norms", "same direction", "replacement", "completeness", "seconds"),
        ]
        return [
            self.opening(),
            markdown_table(columns, lines),
            "Means over prompts with half of the 95% interval. Loss: of the token after the prompt. Active: features "
            "per token and layer. Nodes for 80%: the fewest nodes besides the logits that hold 80% of the influence on "
            "the targets (the likeliest tokens, together 95%); fewer are easier to read. Correlation and same "
            "direction: the features of most influence are switched off and doubled in the model, patterns free, and "
            "the change of the likeliest token's logit is compared with the graph's prediction; with norms: with the "
            "prediction in which the scales of norms follow the stream, to first order. Replacement and completeness "
            "are 1 for models without coders, by construction.",
            *(self.remarks or []),
            *section(
                "Which pattern decides the agreement",
                "The same changes, with some of the patterns that a graph holds also held in the model. Correlation of "
                "predicted and measured changes, with the 95% interval over prompts, over all changes, and over those "
                "of each kind; slope: measured change for each unit of predicted change. Held `norms`: the scales of "
                "norms. `experts`: which experts a token takes; `gates`: which and by how much. `units`: which units "
                "are active (of coders: the coder with its error stands for the MLP). With all patterns held the "
                "model does what the graph predicts. A dash: outputs are not finite, because without norms nothing "
                "bounds the stream of a deep model.",
                ["model", "held", "correlation", "switched off", "doubled", "same direction", "slope"],
                [
                    [
                        row.name,
                        each.held,
                        *(None if number is None else number.text() for number in _numbers(each)),
                        None if each.slope is None else f"{each.slope:.2f}",
                    ]
                    for row in self.entries
                    for each in row.holding or []
                ],
            ),
        ]


def _numbers(row: HeldAgreement) -> list[TraceInterval | None]:
    return [row.both, row.ablate, row.double, row.same_direction]


def traces(
    runs: Sequence[str | Path],
    *,
    data: str | Path | None,
    prompts: int,
    lengths: tuple[int, int] | None,
    coders: Sequence[str],
    features: int,
    check: int,
    seed: int,
    name: str | None,
    out: Path,
    results: str | Path,
    device: str,
) -> TraceResults:
    """Trace prompts of the validation split of each run. Writes `results/trace-NAME.json` and `.md`; a row is added
    when its model is done. An interrupted command goes on at its prompt. `glassmoe.api.papers.traces` documents the
    arguments. ValueError for a run that does not record its data where none is given."""
    names = [Path(path).name for path in runs]
    options = {
        "coder": ",".join(coders) or None,
        "lengths": lengths and "{},{}".format(*lengths),
        "features": None if features == FEATURES else features,
        "check": check,
        "seed": seed or None,
    }
    command = f"glassmoe reproduce trace {' '.join(names)} --prompts {prompts}{option_words(options)}"
    written: TraceResults | None = None
    for path in runs:
        model = Model(*open_readers(path, own=False, device=device), Path(path))
        corpus = opened_corpus(model, data)
        asked = chosen_prompts(model, corpus, prompts, lengths, seed)
        # Runs trace their own layers.
        rows: Sequence[str | None] = coders if model.layers and coders else [None]
        for coder in rows:
            if coder is not None:
                require_coder(model.layers, coder)
        for coder in rows:
            row_name = Path(path).name if coder is None else f"{Path(path).name}/{coder}"
            row = traced_row(model, row_name, asked, coder, features, check, out / "trace")
            facts = TraceResults(command=command, data_sha256=corpus.fingerprint, entries=[row], **origin(device))
            written = facts.save(results, f"trace-{name or names[0]}")
    assert written is not None
    return written


def opened_corpus(model: Model, data: str | Path | None) -> Corpus:
    """The data of the prompts: `data`, or else those that the model was trained on. ValueError where it records none,
    and for data of other tokens."""
    folder = data or _recorded(model)
    if folder is None:
        raise ValueError(f"{model.subject.name} does not record its training data; give --data")
    return Corpus.open(str(folder), model.subject.tokens).require(model.subject.tokens, model.subject.tokenizer_sha256)


def chosen_prompts(
    model: Model, corpus: Corpus, count: int, lengths: tuple[int, int] | None, seed: int
) -> list[tuple[list[int], int]]:
    """Beginnings of sequences of the validation split, spread evenly over it, each with the token that follows. The
    length of each is drawn. ValueError where there are no sequences that are long enough."""
    subject = model.subject
    sequences = corpus.split("valid")
    shortest, longest = lengths or (TEXT_LENGTHS if subject.tokens == TEXT else CHESS_LENGTHS)
    longest = min(longest, subject.context)
    if shortest > longest:
        raise ValueError(
            f"prompts of {shortest} tokens do not fit into the context of {subject.name}, {longest}; give shorter "
            f"--lengths"
        )
    draw = np.random.default_rng(seed)
    found: list[tuple[list[int], int]] = []
    start = _start(subject)
    for index in draw.permutation(len(sequences)):
        ids = [int(token) for token in sequences.tokens(int(index))]
        ids = ids if start is None or ids[:1] == [start] else [start, *ids]
        size = int(draw.integers(shortest, longest + 1))
        if len(ids) > size:
            found.append((ids[:size], ids[size]))
        if len(found) == count:
            return found
    if not found:
        raise ValueError(
            f"the validation split of {corpus.path} has no sequence of more than {shortest} tokens; give shorter "
            f"--lengths"
        )
    return found


def _start(subject: Subject) -> int | None:
    return subject.kind().start if subject.tokens == TEXT else None


def _recorded(model: Model) -> str | None:
    config: Any = model.subject.config
    configs = [config] if config is not None else [reader.config for reader in model.layers.values()]
    return next((each.data.path for each in configs if each is not None and each.data.path), None)


def traced_row(
    model: Model,
    name: str,
    prompts: Sequence[tuple[list[int], int]],
    coder: str | None,
    features: int,
    check: int,
    out: Path,
) -> TraceRow:
    """Trace these prompts of one model. Those that are in `out` already are not traced again."""
    parts = {each: (reader.layer, reader.place) for each, reader in model.layers.items()}
    tracer = Tracer(model.subject, parts, coder)
    finished = FinishedPrompts(out, name, tracer, features, check)
    traced = []
    for number, (ids, following) in enumerate(prompts, start=1):
        one = finished.get(ids, following)
        if one is None:
            one = traced_prompt(tracer, ids, following, features, check)
            finished.add(ids, following, one)
            say(f"{name}: prompt {number} of {len(prompts)}, {one.nodes_for_80} nodes hold 80% ({one.seconds:.1f} s)")
        traced.append(one)
    return row_of(name, traced, list(holds_of(tracer.patterns())))


def row_of(name: str, traced: Sequence[TracedPrompt], holds: Sequence[str]) -> TraceRow:
    """The row of these prompts. `holds`: names of what was held."""

    def mean(field_name: str) -> TraceMean:
        return TraceMean.of([getattr(each, field_name) for each in traced])

    checks = [each.check for each in traced if each.check is not None and each.check.sign_agreement is not None]
    together = compared([pair for each in checks for pair in each.pairs])
    signs = [each.sign_agreement for each in checks if each.sign_agreement is not None]
    return TraceRow(
        name=name,
        kind=", ".join(dict.fromkeys(kind for each in traced for kind in each.kinds)),
        prompts=len(traced),
        tokens=mean("tokens"),
        loss=mean("loss"),
        active=mean("active"),
        nodes_for_80=mean("nodes_for_80"),
        direct_for_80=mean("direct_for_80"),
        replacement=mean("replacement"),
        completeness=mean("completeness"),
        correlation=together.correlation,
        following=together.following,
        sign_agreement=TraceMean.of(signs) if signs else None,
        changes=len(together.pairs),
        seconds=mean("seconds"),
        nodes=[each.nodes_for_80 for each in traced],
        holding=agreements(checks, holds),
    )
