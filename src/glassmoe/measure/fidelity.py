"""What a model loses when a coder's reconstruction takes the place of what it rebuilds, and how well it is rebuilt.

Loss recovered (Karvonen et al. 2024) is (CE_zero - CE_recon) / (CE_zero - CE_orig), CE_zero with zeros at that place:
1 when nothing is lost, 0 when the reconstruction is worth no more than zeros.

Legend: B rows, S positions, T tokens that are not padding, D width of the stream, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glassmoe.coders.files import header
from glassmoe.coders.reconstruction import StreamFit
from glassmoe.coders.task import corpus_for
from glassmoe.data.corpus import Rows
from glassmoe.inspect.edit import spliced
from glassmoe.inspect.readers import Reader, open_coders, sources
from glassmoe.model import FeedForward
from glassmoe.model.loss import count_labels, next_token_loss
from glassmoe.model.subject import Place, activations, load_subject, replaced

from .saved import save_measure


def splice_loss(
    model: Any, coder: FeedForward, place: Place, rows: Rows, indices: npt.ArrayLike, micro_rows: int
) -> dict[str, Any]:
    """`fidelity` of one coder."""
    return fidelity(model, {"coder": (coder, place)}, rows, indices, micro_rows)["coder"]


@torch.no_grad()
def fidelity(
    model: Any,
    coders: Mapping[str, tuple[FeedForward, Place]],
    rows: Rows,
    indices: npt.ArrayLike,
    micro_rows: int,
) -> dict[str, dict[str, Any]]:
    """Fidelity of each coder on rows of tokens, `micro_rows` at a time; padding counts nowhere.

    Cross-entropies in nats per predicted token: `loss` as the model is, `loss_spliced`, `loss_zero` with zeros at the
    place; `loss_increase` = spliced - loss; `loss_recovered` (None where zeros change nothing). Of the target y:
    `squared_error` = mean ||y - y^||^2; `variance_explained` = 1 - sum var(y - y^) / sum var(y), sums over entries and
    variances over tokens; `normalised_mse` = `squared_error` / mean ||y - mean y||^2. Of the features: `l0`, mean
    number above 0 per token; `alive`, share of them above 0 on at least one token. `rows`, `tokens`: how much was read.
    ValueError when there are no rows.
    """
    chosen = torch.as_tensor(indices).reshape(-1).numpy()
    if not len(chosen):
        raise ValueError("no rows to measure on; prepare data with a larger validation split")
    device = next(model.parameters()).device
    modules = [model, *(coder for coder, _ in coders.values())]
    was_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    places = list(dict.fromkeys(place for _, place in coders.values()))
    loss, labels = 0.0, 0
    zero, lost = dict.fromkeys(places, 0.0), dict.fromkeys(coders, 0.0)
    fits = {name: StreamFit() for name in coders}
    for start in range(0, len(chosen), micro_rows):
        tokens, lengths = rows.batch(chosen[start : start + micro_rows])
        given = torch.from_numpy(tokens).to(device).long(), torch.from_numpy(lengths).to(device)
        loss += float(next_token_loss(model, *given)[0])
        for place in places:
            with replaced(model, place, lambda _, y: torch.zeros_like(y)):
                zero[place] += float(next_token_loss(model, *given)[0])
        labels += count_labels(lengths)
        read = activations(model, places, given[0][:, :-1])
        inside_BS = torch.arange(given[0].shape[1] - 1, device=device) < given[1].unsqueeze(1)
        for name, (coder, place) in coders.items():
            with spliced(model, coder, place):
                lost[name] += float(next_token_loss(model, *given)[0])
            fits[name].add(coder, *(v_BSD[inside_BS] for v_BSD in read[place]))
    for module, training in zip(modules, was_training, strict=True):
        module.train(training)
    found = {}
    for name, (_, place) in coders.items():
        original, without, spliced_in = loss / labels, zero[place] / labels, lost[name] / labels
        room = without - original
        found[name] = {
            "loss": original,
            "loss_spliced": spliced_in,
            "loss_zero": without,
            "loss_increase": spliced_in - original,
            "loss_recovered": (without - spliced_in) / room if room else None,
            **fits[name].finish(),
            "rows": len(chosen),
        }
    return found


def evaluate_fidelity(
    path: Path,
    *,
    data: str | None = None,
    rows: int = 512,
    micro_rows: int = 16,
    source: str | None = None,
    device: str = "auto",
) -> dict[str, dict[str, Any]]:
    """What a model loses by each coder of a fit or a sweep, on the first `rows` validation rows of its data, or of the
    prepared data at `data`, cut as for the fit: `splice.fidelity` with facts about each coder. Also saved as the
    measure `fidelity` of each coder's directory. ValueError when a coder or the model cannot be loaded, or the model
    has other weights than the coders were fitted to."""
    subject, readers = open_coders(path, source, device)
    config = next(reader.config for reader in readers.values())
    assert config is not None
    corpus = corpus_for(config.source, data or config.data.path, subject)
    valid = Rows(corpus.split("valid"), config.data.rows)
    found = fidelity(subject.model, sources(readers), valid, np.arange(min(rows, len(valid))), micro_rows)
    for name, reader in readers.items():
        found[name] = {**coder_facts(reader), **found[name]}
        assert reader.folder is not None
        save_measure(reader.folder, "fidelity", found[name], corpus)
    return found


def intrinsic_fidelity(
    path: Path,
    *,
    data: str | None = None,
    rows: int = 512,
    micro_rows: int = 16,
    source: str | None = None,
    device: str = "auto",
) -> dict[str, dict[str, Any]]:
    """The same of a run of glassmoe's own, whose feed-forward layers are read as they are: what their features write
    stands in for what they compute, layer by layer, so that nothing is lost but by rounding. Saved as its measure
    `fidelity`."""
    subject = load_subject(source or str(path), device)
    if not hasattr(subject.model, "feed_forwards"):
        raise ValueError(f"{path} is not a model of glassmoe's own; decompose it first, with glassmoe decompose")
    corpus = corpus_for(str(path), data, subject)
    cut = subject.config.data.rows if subject.config else f"games:{subject.context}"
    layers = subject.model.feed_forwards()
    coders = {f"{i}/{subject.model.config.ffn}": (layer, subject.place(i, "mlp")) for i, layer in enumerate(layers)}
    valid = Rows(corpus.split("valid"), cut)
    found = fidelity(subject.model, coders, valid, np.arange(min(rows, len(valid))), micro_rows)
    for name, (layer, _) in coders.items():
        parameters = sum(p.numel() for p in layer.parameters())
        found[name] |= {"features": layer.num_features, "parameters": parameters, "dead": None}
    save_measure(path, "fidelity", found, corpus)
    return found


def coder_facts(reader: Reader) -> dict[str, Any]:
    """Facts about a coder. `dead`: how many features were silent when the fit ended; None where there was none, as for
    a coder that was imported."""
    config, coder, folder = reader.config, reader.coder, reader.folder
    assert config is not None and folder is not None
    written = header(folder)
    step = int(written["step"])
    return {
        "kind": config.coder.kind,
        "layer": config.coder.layer,
        "k": config.coder.k if config.coder.uses_k else None,
        "features": coder.num_features,
        "parameters": sum(p.numel() for p in coder.parameters()),
        "step": step,
        "source_sha256": written["source_sha256"],
        "dead": int(coder.dead_F.sum()) if step else None,
    }
