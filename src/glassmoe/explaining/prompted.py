"""The strongest features of each token of a prompt, with what explanations say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassmoe.checksums import parse_lines
from glassmoe.console import say
from glassmoe.inspect.model import Model
from glassmoe.inspect.readers import Reader
from glassmoe.model.subject import Subject
from glassmoe.results import Result

from .files import explained_store

STRONGEST = 5
"""Features that are shown of a token."""


@dataclass(frozen=True)
class PromptFeature(Result):
    """A feature that fires on a token."""

    feature: int
    strength: float
    explanation: str
    """What it is said to fire on; empty where nothing is."""


@dataclass(frozen=True)
class PromptToken(Result):
    """A token of a prompt and its strongest features."""

    token: str
    active: int
    """Features that fire on it."""
    strongest: list[PromptFeature]
    """The strongest of them, strongest first."""


@dataclass(frozen=True)
class PromptResult(Result):
    """The strongest features of each token of a prompt."""

    name: str
    """Name of the layer or coder."""
    prompt: str
    tokens: list[PromptToken]

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "token": token.token if not place else "",
                "feature": each.feature,
                "strength": f"{each.strength:.3g}",
                "explanation": each.explanation or "-",
            }
            for token in self.tokens
            for place, each in enumerate(token.strongest or [PromptFeature(-1, 0.0, "no feature fires")])
        ]


def prompt_features(
    subject: Subject, layer: Reader, prompt: str, explanations: Mapping[int, str], strongest: int = STRONGEST
) -> PromptResult:
    """The `strongest` features of each token of a prompt. `explanations`: feature -> what it fires on. ValueError for a
    prompt that the model cannot read."""
    found = Model(subject, {layer.name: layer}, None).features(prompt)
    counts = found.active.sum(-1).tolist()
    tokens = [
        PromptToken(token, active, [PromptFeature(f, strength, explanations.get(f, "")) for f, strength in top])
        for token, active, top in zip(found.tokens, counts, found.top(strongest), strict=True)
    ]
    return PromptResult(layer.name, prompt, tokens)


def saved_explanations(folder: Path, subject: Subject) -> dict[int, str]:
    """Feature -> its explanation in the files `JUDGE.jsonl` of a folder, the first file by name that has one. Other
    lines are left out, and files of other weights than those of `subject`."""
    said: dict[int, str] = {}
    for file in sorted(folder.glob("*.jsonl")):
        if not _is_of(subject, explained_store(file).get("weights_sha256")):
            say(f"{file} explains other weights than {subject.name} holds and is left out")
            continue
        for line in parse_lines(file)[0]:
            feature, text = line.get("feature"), line.get("explanation")
            if isinstance(feature, int) and isinstance(text, str) and text:
                said.setdefault(feature, text)
    return said


def _is_of(subject: Subject, digest: str | None) -> bool:
    """Whether explanations may be of this model: unless their weights are known to be others."""
    try:
        return digest is None or subject.has_weights(digest)
    except ValueError:  # too little of the model is loaded to tell
        return True
