"""What a model loses when a coder's reconstruction replaces its target, and how good the reconstruction is.

Loss recovered (Karvonen et al. 2024) is (CE_zero - CE_recon) / (CE_zero - CE_orig), where CE_zero has zeros in place of
the target: 1 if nothing is lost, 0 if the reconstruction is no better than zeros.

Legend: B rows, S positions, T tokens that are not padding, D width of the stream, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.coders.files import header
from glassmoe.coders.reconstruction import CoderReconstruction, ReconstructionSums
from glassmoe.coders.task import corpus_for
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.inspect.readers import Reader, sources
from glassmoe.model import FeedForward
from glassmoe.model.loss import count_labels, next_token_loss
from glassmoe.model.shared_blocks import SharedBlocks
from glassmoe.model.subject import Place, Subject, reading, replaced
from glassmoe.results import Result, ResultsByName, stored_as

from .perplexity import usual_cut
from .saved import save_measure


@dataclass(frozen=True, kw_only=True)
class Fidelity(CoderReconstruction):
    """How well features rebuild a target, and what the model loses with the reconstruction in its place. Losses are
    cross-entropies in nats per predicted token."""

    loss: float
    """Loss of the model itself."""
    loss_spliced: float
    """With the reconstruction in place of the target."""
    loss_zero: float
    """With zeros in place of the target."""
    loss_increase: float
    """`loss_spliced` - `loss`."""
    loss_recovered: float | None
    """(`loss_zero` - `loss_spliced`) / (`loss_zero` - `loss`); None where zeros change nothing."""
    rows_read: int = stored_as("rows")
    """Rows that were read."""


@dataclass(frozen=True, kw_only=True)
class CoderFacts(Result):
    """Facts about a coder."""

    kind: str
    layer: int
    """Layer that it reads."""
    k: int | None
    """Features per token; None for kinds whose number is not fixed."""
    features: int
    parameters: int
    step: int
    """Steps of its fit; 0 for an imported coder."""
    source_sha256: str
    """Sha256 of the weights of the model that it was fitted to."""
    dead: int | None
    """Features that were silent when the fit ended; None for an imported coder."""


@dataclass(frozen=True, kw_only=True)
class CoderFidelity(Fidelity, CoderFacts):
    """The fidelity of a fitted coder."""


@dataclass(frozen=True, kw_only=True)
class LayerFidelity(Fidelity):
    """The fidelity of a feed-forward layer's own features, which lose only rounding."""

    features: int
    parameters: int
    dead: None = None
    """Always None: a layer does not count silent features."""


@dataclass(frozen=True)
class FidelityResult(ResultsByName["CoderFidelity | LayerFidelity"]):
    """Name of a coder (`0/mxd-k32`) or of a feed-forward layer (`0/moe-x`) -> its fidelity."""

    FORMATS: ClassVar = {
        "features": ",", "parameters": ",", "L0": ".1f", "normalised MSE": ".4f", "loss": ".4f", "spliced": ".4f",
        "increase": ".4f",
    }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls({name: (CoderFidelity if "kind" in v else LayerFidelity).from_dict(v) for name, v in values.items()})

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "coder": name,
                "features": one.features,
                "parameters": one.parameters,
                "L0": one.l0,
                "largest": one.largest_share,
                "dead": one.dead,
                "normalised MSE": one.normalised_mse,
                "loss": one.loss,
                "spliced": one.loss_spliced,
                "increase": one.loss_increase,
                "recovered": one.loss_recovered,
            }
            for name, one in self.by_name.items()
        ]


def evaluate_fidelity(
    subject: Subject,
    readers: Mapping[str, Reader],
    *,
    data: str | None = None,
    max_rows: int = 512,
    micro_rows: int = 16,
) -> FidelityResult:
    """What a model loses by each of its coders, or by the features of each of its feed-forward layers, on the first
    `max_rows` rows of `validation_rows`. Saves the measure `fidelity` of each coder, or of the run."""
    corpus, rows = validation_rows(subject, readers, data)
    measured = fidelity(subject.model, sources(readers), rows, np.arange(min(max_rows, len(rows))), micro_rows)
    by_name: dict[str, CoderFidelity | LayerFidelity] = {}
    for name, reader in readers.items():
        if reader.folder is not None:
            by_name[name] = CoderFidelity(**vars(coder_facts(reader)), **vars(measured[name]))
            save_measure(reader.folder, "fidelity", by_name[name], corpus)
        else:
            module = subject.model.get_submodule(reader.place.module)
            parameters = sum(p.numel() for p in module.parameters())
            width = reader.layer.num_features
            by_name[name] = LayerFidelity(**vars(measured[name]), features=width, parameters=parameters)
    result = FidelityResult(by_name)
    if subject.config is not None and all(reader.folder is None for reader in readers.values()):
        save_measure(Path(subject.name), "fidelity", result, corpus)
    return result


def validation_rows(subject: Subject, readers: Mapping[str, Reader], data: str | None = None) -> tuple[Corpus, Rows]:
    """The validation rows of the prepared data at `data`, by default the data of the coders' fit or of the run, cut as
    for that fit or training. ValueError for missing data and for other tokens."""
    config = next((reader.config for reader in readers.values() if reader.config is not None), None)
    if config is not None:
        corpus = corpus_for(config.source, data or config.data.path, subject)
        return corpus, Rows(corpus.split("valid"), config.data.rows)
    corpus = corpus_for(subject.name, data, subject)
    return corpus, Rows(corpus.split("valid"), usual_cut(subject.model, subject.config, corpus))


@torch.no_grad()
def fidelity(
    model: Any,
    coders: Mapping[str, tuple[FeedForward, Place]],
    rows: Rows,
    indices: npt.ArrayLike,
    micro_rows: int,
) -> dict[str, Fidelity]:
    """Fidelity of each coder on rows of tokens, `micro_rows` at a time, in passes that share blocks (`SharedBlocks`).
    The model and the coders run in evaluation mode and are set back afterwards. ValueError without rows."""
    chosen = torch.as_tensor(indices).reshape(-1).numpy()
    if not len(chosen):
        raise ValueError("there are no rows to measure on; prepare data with a larger validation split")
    device = next(model.parameters()).device
    modules = [model, *(coder for coder, _ in coders.values())]
    was_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    places = list(dict.fromkeys(place for _, place in coders.values()))
    loss, labels = 0.0, 0
    zero, spliced_loss = dict.fromkeys(places, 0.0), dict.fromkeys(coders, 0.0)
    fits, shared = {name: ReconstructionSums() for name in coders}, SharedBlocks(model, places)

    def changed_loss(place: Place, batch: tuple[Tensor, Tensor], change: Callable[[Tensor], Tensor]) -> float:
        with shared.skipped(place), replaced(model, place, lambda _, y: change(y)):
            return float(next_token_loss(model, *batch)[0])

    for start in range(0, len(chosen), micro_rows):
        tokens, lengths = rows.batch(chosen[start : start + micro_rows])
        batch = torch.from_numpy(tokens).to(device).long(), torch.from_numpy(lengths).to(device)
        with shared.kept(), reading(model, places, batch[0][:, :-1]) as read:
            loss += float(next_token_loss(model, *batch)[0])
        for place in places:
            zero[place] += changed_loss(place, batch, torch.zeros_like)
        labels += count_labels(lengths)
        inside_T = (torch.arange(batch[0].shape[1] - 1, device=device) < batch[1].unsqueeze(1)).flatten()
        for name, (coder, place) in coders.items():
            x_TD, y_TD = (v_BSD.flatten(0, 1) for v_BSD in read[place])
            with torch.autocast(device.type, enabled=False):
                written_TD = fits[name].add(coder, x_TD, y_TD, inside_T)
            spliced_loss[name] += changed_loss(place, batch, written_TD.view_as)
    for module, training in zip(modules, was_training, strict=True):
        module.train(training)
    results = {}
    for name, (_, place) in coders.items():
        original, without, with_coder = loss / labels, zero[place] / labels, spliced_loss[name] / labels
        room = without - original
        results[name] = Fidelity(
            loss=original,
            loss_spliced=with_coder,
            loss_zero=without,
            loss_increase=with_coder - original,
            loss_recovered=(without - with_coder) / room if room else None,
            **fits[name].finish().to_dict(),
            rows_read=len(chosen),
        )
    return results


def coder_facts(reader: Reader) -> CoderFacts:
    """Facts about a fitted or imported coder."""
    config, coder, folder = reader.config, reader.coder, reader.folder
    assert config is not None and folder is not None
    written = header(folder)
    step = int(written["step"])
    return CoderFacts(
        kind=config.coder.kind,
        layer=config.coder.layer,
        k=config.coder.k if config.coder.uses_k else None,
        features=coder.num_features,
        parameters=sum(p.numel() for p in coder.parameters()),
        step=step,
        source_sha256=written["source_sha256"],
        dead=int(coder.dead_F.sum()) if step else None,
    )
