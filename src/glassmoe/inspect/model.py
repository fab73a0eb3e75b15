"""A model opened for reading: its layers of features by name, what they say of a text, and the model with some of them
changed. `glassmoe.load` returns it, whatever the model was opened from.

Legend: T tokens, F features of a layer, A features listed per token, D width of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassmoe.layers.features import Features, FeedForward
from glassmoe.model.subject import Subject, inputs_at
from glassmoe.results import Result
from glassmoe.text.spelling import Spelling
from glassmoe.tracing.graph import Graph
from glassmoe.tracing.prompts import given_ids
from glassmoe.tracing.tracer import FEATURES, Tracer

from .change import one_change
from .edit import Edit, edited, features_of, require_unedited
from .readers import Reader, one_reader
from .sample import Sampling, sampled


@dataclass(frozen=True)
class Generated(Result):
    """Continuations of a prompt."""

    prompt: str
    """The text that was continued."""
    texts: list[str]
    """Each continuation, prompt included."""

    def rows(self) -> list[dict[str, Any]]:
        return [{"text": text} for text in self.texts]

    def table(self) -> str:
        return "\n".join(self.texts)


@dataclass(frozen=True)
class TokenFeatures(Result):
    """The features of one layer on the tokens of a text."""

    name: str
    """Name of the layer or coder, such as `1/moe-x`."""
    tokens: list[str]
    """The text of each token; a token that ends within a character shows its bytes, as in `<e6>`."""
    features: Features
    """Strengths of the features on the T tokens."""
    active: Tensor
    """Bool, of the shape of the strengths: which of them count as active."""

    @property
    def values(self) -> Tensor:
        """(T, F) for a dense layer, else (T, A): strengths."""
        return self.features.values

    @property
    def ids(self) -> Tensor:
        """(T, F) or (T, A): the feature that each strength belongs to."""
        if self.features.ids is not None:
            return self.features.ids
        return torch.arange(self.features.width, device=self.values.device).expand(len(self.values), -1)

    def to_dense(self) -> Tensor:
        """(T, F): the strength of every feature."""
        return self.features.to_dense()

    def l0(self) -> float:
        """Mean number of active features per token."""
        return float(self.active.sum(-1).float().mean())

    def top(self, k: int = 5) -> list[list[tuple[int, float]]]:
        """For each token its k strongest active features, as (feature, strength), strongest first."""
        strengths, places = self.values.masked_fill(~self.active, 0.0).sort(dim=-1, descending=True, stable=True)
        ids = self.ids.gather(-1, places)
        counts = self.active.sum(-1).clamp(max=k).tolist()
        rows = zip(ids[:, :k].tolist(), strengths[:, :k].tolist(), counts, strict=True)
        return [list(zip(i[:count], s[:count], strict=True)) for i, s, count in rows]

    def to_dict(self) -> dict[str, Any]:
        """`name`, `tokens`, and `top`: for each token its 10 strongest active features with their strength."""
        top = [[list(pair) for pair in token] for token in self.top(10)]
        return {"name": self.name, "tokens": self.tokens, "l0": self.l0(), "top": top}

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "token": token,
                "active": int(active),
                "strongest features": ", ".join(f"{feature} ({strength:.3g})" for feature, strength in strongest),
            }
            for token, active, strongest in zip(self.tokens, self.active.sum(-1).tolist(), self.top(), strict=True)
        ]


class Model(Mapping[str, FeedForward]):
    """A causal language model, and by name the layers of features in it: its own feed-forward layers (`1/moe-x`), the
    neurons of another family's MLPs (`8/neurons`), or the coders that were fitted to it (`8/mxd-k32`).

    `model["8/mxd-k32"]` is the layer or coder itself, a torch module. `subject`: the frozen model. `path`: where it was
    opened from, if it was not made from objects.
    """

    def __init__(self, subject: Subject, layers: Mapping[str, Reader], path: Path | None):
        self.subject = subject
        self.layers = dict(layers)
        self.path = path

    def __getitem__(self, name: str) -> FeedForward:
        return self.find(name).layer

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def torch_model(self) -> Any:
        """The transformers model."""
        return self.subject.model

    def find(self, name: str | None = None, layer: int | None = None) -> Reader:
        """The only layer of features at `layer` that is called `name`; either may be left out where that is clear.
        ValueError that lists the names otherwise."""
        at_layer = {key: each for key, each in self.layers.items() if layer is None or each.number == layer}
        if not at_layer:
            numbers = sorted({each.number for each in self.layers.values()})
            raise ValueError(f"layer {layer} is not in this model: it has layers {', '.join(map(str, numbers))}")
        return one_reader(at_layer, name)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, the start token of the model first where it has one."""
        return [int(token) for token in self.subject.encode(text)]

    @torch.no_grad()
    def features(self, text: str | Sequence[int], layer: int | None = None, name: str | None = None) -> TokenFeatures:
        """The features of one layer or coder on every token of a text (or of token ids).

        ValueError for a layer that is not there, a text that cannot be tokenized, and one longer than the context.
        """
        readable = self.find(name, layer)
        kind = self.subject.kind()
        ids = self.subject.encode(text) if isinstance(text, str) else given_ids(self.subject, text, "the text")
        if not 0 < len(ids) <= self.subject.context:
            raise ValueError(f"the text has {len(ids)} tokens; expected 1 to {self.subject.context}, the context")
        device = next(self.subject.model.parameters()).device
        tokens_1T = torch.from_numpy(ids.astype(np.int64)).unsqueeze(0).to(device)
        x_1TD = inputs_at(self.subject.model, [readable.place], tokens_1T)[readable.place]
        features = readable.layer.features(x_1TD[0])
        return TokenFeatures(readable.name, Spelling(kind)(ids), features, readable.layer.active(features))

    @contextmanager
    def edit(
        self,
        layer: int | None = None,
        features: int | Sequence[int] = (),
        *,
        name: str | None = None,
        experts: int | Sequence[int] = (),
        add: float | None = None,
        set: float | None = None,
        scale: float | None = None,
        ablate: bool = False,
    ) -> Iterator[None]:
        """Inside this context, features of one layer are changed at every token, in whatever runs the model. Edits
        within edits of the same layer add up.

        Give one change: `add` to their strength, `set` it, `scale` it, or `ablate` (set to 0). `experts`: all features
        of these experts. What a coder rebuilds takes the place of what it stands for, so that its error is gone, too:
        compare with an edit that changes nothing, `scale=1.0`. ValueError for a layer or feature that is not there, and
        unless exactly one change is given.
        """
        self.subject.require_whole("an edit")
        target = self.find(name, layer)
        edit = make_edit(target.layer, features, experts, add=add, set=set, scale=scale, ablate=ablate)
        with edited(self.subject.model, target.layer, target.place, edit):
            yield

    def generate(
        self,
        prompt: str | None = None,
        *,
        tokens: int = 100,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        frequency_penalty: float = 0.0,
        samples: int = 1,
        seed: int = 0,
        on_text: Callable[[str], object] | None = None,
    ) -> Generated:
        """Continue a prompt; parameters as for `glassmoe.generate`."""
        self.subject.require_whole("generation")
        kind = self.subject.kind()
        prompt = kind.prompt if prompt is None else prompt
        self.subject.encode(prompt, prompt=True)  # refuses a token that the model cannot read
        sampling = Sampling(tokens, samples, temperature, top_p, frequency_penalty, seed, top_k)
        rows, _ = sampled(self.subject.model, prompt, kind, sampling, on_text)
        return Generated(prompt, [kind.decode(row) for row in rows])

    def trace(
        self,
        prompt: str | Sequence[int],
        *,
        target: str | int | None = None,
        against: str | int | None = None,
        coder: str | None = None,
        features: int = FEATURES,
        check: int = 0,
    ) -> Graph:
        """The attribution graph of a prompt (or of token ids): what led to the logits of its next token.

        `target`: the token whose logit is explained, as text or id; by default the likeliest tokens, together 95%.
        `against`: the token whose logit is subtracted. `coder`: of several coders at one layer, which stand for the
        MLPs. `features`: whose incoming edges are computed, at most. `check`: how many features are switched off and
        doubled in the model, to compare the effect with the graph. ValueError for a model without features, for a
        prompt that is empty or longer than the context, and for what is no single token.
        """
        self.subject.require_whole("an attribution graph")
        require_unedited(self.subject.model, "an attribution graph, which is made of the model's own weights")
        parts = {name: (each.layer, each.place) for name, each in self.layers.items()}
        tracer = Tracer(self.subject, parts, coder)
        return tracer.trace(prompt, target=target, against=against, features=features, check=check)

    def __repr__(self) -> str:
        return f"Model({self.subject.name}: {', '.join(self.layers)})"

    def _repr_html_(self) -> str:
        from glassmoe.results import html_table

        rows = [[name, type(each.layer).__name__, each.layer.num_features] for name, each in self.layers.items()]
        return html_table(["name", "kind", "features"], rows)


def make_edit(
    layer: FeedForward,
    features: int | Sequence[int],
    experts: int | Sequence[int],
    *,
    add: float | None = None,
    set: float | None = None,
    scale: float | None = None,
    ablate: bool = False,
) -> Edit:
    """The change of features or whole experts that these arguments describe. ValueError unless it is exactly one."""
    given = [[each] if isinstance(each, int | Integral) else [*each] for each in (features, experts)]
    chosen = [[int(number) for number in numbers] for numbers in given]
    action, amount = one_change(*chosen, add=add, set=set, scale=scale, ablate=ablate)
    return Edit(action, features_of(layer, *chosen), amount)
