"""What the features of a layer say of a text that a reader gives: computed when the pages are made, for given texts, or
by the server of `explore --serve`, for any text."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassmoe.explaining.prompted import prompt_features
from glassmoe.results import Result

from .explored import folders_of, open_explored
from .records import Number, Recorder, Relations, rounded

Answer = Callable[[str, str], str | None]
"""Page of a layer (`RUN/LAYER`) and a text -> a JSON value for the page; None for a page that is not there."""


@dataclass(frozen=True)
class PromptRecord(Result):
    """A text and the strongest features of its tokens, as a page shows them."""

    prompt: str
    tokens: list[str]
    active: list[int]
    """Features that fire on each token."""
    strongest: list[list[list[Any]]]
    """For each token its strongest features, each [feature, strength, label]."""


def prompt_record(recorder: Recorder, prompt: str) -> PromptRecord:
    """What the layer of a recorder says of a text. ValueError for a text that the model cannot read."""
    layer = recorder.layer
    try:
        found = prompt_features(layer.subject, layer.reader, prompt, {})
    except ValueError as error:
        raise ValueError(f"cannot read the prompt {prompt[:40]!r}: {error}") from None
    strongest: list[list[list[Number | Any]]] = [
        [[each.feature, rounded(each.strength), recorder.label(each.feature)] for each in token.strongest]
        for token in found.tokens
    ]
    tokens = [token.token for token in found.tokens]
    return PromptRecord(prompt, tokens, [token.active for token in found.tokens], strongest)


def live_prompts(
    runs: str | Path | Sequence[str | Path],
    *,
    layers: Sequence[int] | None = None,
    source: str | Path | None = None,
    device: str = "auto",
) -> Answer:
    """What a server answers for the pages of some runs, opened as `build_site` opens them."""
    explored = open_explored(runs, layers, source, device)
    nothing = Relations(None, None, None, None)
    recorders = {
        place: Recorder(layer, nothing, boards=False)
        for place, layer in zip(folders_of(explored), explored, strict=True)
    }
    one_at_a_time = threading.Lock()

    def answer(place: str, text: str) -> str | None:
        if place not in recorders:
            return None
        with one_at_a_time:
            try:
                return json.dumps(prompt_record(recorders[place], text).to_dict())
            except ValueError as error:
                return json.dumps({"error": str(error)})

    return answer
