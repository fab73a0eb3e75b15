"""The graphs of single prompts as numbers, kept in a file so that an interrupted `reproduce trace` goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glassmoe.atomic import write_text
from glassmoe.checksums import parse_lines, with_checksum
from glassmoe.console import say
from glassmoe.model.subject import weights_digest
from glassmoe.results import Result
from glassmoe.tracing.agreement import TraceCheck
from glassmoe.tracing.tracer import Tracer

from .trace_holds import holds_of

VERSION = 1
"""Is raised when the same prompt no longer gives the same numbers."""


@dataclass(frozen=True)
class TracedPrompt(Result):
    """What a row counts of the graph of one prompt."""

    tokens: int
    kinds: list[str]
    loss: float
    """Cross-entropy of the token that follows, in nats."""
    active: float
    """Per token and layer."""
    nodes_for_80: int
    direct_for_80: int
    replacement: float
    completeness: float
    seconds: float
    check: TraceCheck | None


def traced_prompt(tracer: Tracer, ids: list[int], following: int, features: int, check: int) -> TracedPrompt:
    """Trace one prompt, whose next token is `following`. The changes are also made with patterns held (`holds_of`)."""
    holds = list(holds_of(tracer.patterns()).values())
    graph = tracer.trace(ids, features=features, check=check, holds=holds, details=False)
    with torch.no_grad():
        device = next(tracer.subject.model.parameters()).device
        logits_V = tracer.subject.model(input_ids=torch.tensor([ids], device=device)).logits[0, -1]
    loss = torch.nn.functional.cross_entropy(logits_V.float(), torch.tensor(following, device=device))
    return TracedPrompt(
        tokens=len(graph.tokens),
        kinds=list(dict.fromkeys(graph.kinds)),
        loss=float(loss),
        active=graph.active / len(graph.tokens) / max(1, len(graph.sources)),
        nodes_for_80=graph.nodes_for_80 or 0,
        direct_for_80=graph.direct_for_80 or 0,
        replacement=graph.replacement,
        completeness=graph.completeness,
        seconds=graph.seconds or 0.0,
        check=graph.check,
    )


class FinishedPrompts:
    """The prompts of a row that were traced already: `folder/MODEL-DIGEST.jsonl`, one line for each. The digest stands
    for all that the numbers depend on besides the prompt: weights, coders and settings."""

    def __init__(self, folder: Path, name: str, tracer: Tracer, features: int, check: int):
        layers = {each: weights_digest(layer) for each, layer in tracer.layers.values()}
        about = [VERSION, weights_digest(tracer.subject.model), layers, features, check]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{name.replace('/', '-')}-{digest[:12]}.jsonl"
        self._traced: dict[tuple[int, ...], TracedPrompt] = {}
        if self.path.exists():
            lines, damaged, cut = parse_lines(self.path)
            if damaged:
                say(f"{self.path} is damaged: {len(damaged)} lines are not what was written; they are traced again")
            self._traced = {tuple(line["ids"]): TracedPrompt.from_dict(line["traced"]) for line in lines}
            if damaged or cut:
                write_text(self.path, "".join(map(_line, self._traced, self._traced.values())))

    def get(self, ids: Sequence[int], following: int) -> TracedPrompt | None:
        return self._traced.get((*ids, following))

    def add(self, ids: Sequence[int], following: int, traced: TracedPrompt) -> None:
        key = (*ids, following)
        self._traced[key] = traced
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(key, traced))


def _line(key: tuple[int, ...], traced: TracedPrompt) -> str:
    return json.dumps(with_checksum({"ids": list(key), "traced": traced.to_dict()})) + "\n"
