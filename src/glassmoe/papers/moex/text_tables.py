"""The page of a suite of text: one line a row with its perplexities, the paper's beside; then words, bytes and layers.

A row has `ppl` (the validation split), `texts` (what `text_perplexity` returns for each), and `sparsity` (a list of
`models.statistics` by layer) or, of an autoencoder, `splice`; the file's `texts` say what was read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from glassmoe.measure.tables import table

from .claims import by_name, value
from .paper import PERPLEXITIES, size_of
from .text_claims import PREFIX, text_measures

Row = dict[str, Any]


def headline(recipe: str, rows: Sequence[Row]) -> str:
    """One line a name, figures being means over its seeds."""
    texts = [each.removeprefix(PREFIX) for each in text_measures(rows)]
    theirs = PERPLEXITIES[size_of(recipe)]
    shown = {text: any(text in theirs.get(row["name"], {}) for row in rows) for text in texts}
    header = ["row", "seeds", "loss", "bits per byte"]
    for text in texts:
        header += [text, *(["paper"] if shown[text] else [])]
    header += ["L0", "of", "tokens", "FLOPs", "active", "ratio", "parameters"]
    lines = []
    for name, group in by_name(rows).items():
        perplexities: list[str | None] = []
        for text in texts:
            perplexities.append(_figure(_mean_of(group, text, "perplexity"), 2))
            if shown[text]:
                perplexities.append(_figure(theirs.get(name, {}).get(text), 2))
        bits = [row["ppl"]["bits_per_byte"] for row in group if row.get("ppl")]
        ratio = group[0].get("active_ratio")
        lines.append(
            [
                name,
                len(group),
                _figure(_mean([value(row, "loss") for row in group]), 4),
                _figure(_mean(bits), 4),
                *perplexities,
                _figure(_mean([_l0(row) for row in group]), 0),
                _width(group[0]),
                f"{statistics.fmean(row['tokens'] for row in group) / 1e6:.2f}M",
                f"{statistics.fmean(row['flops'] for row in group):.2e}",
                f"{group[0]['active_parameters'] / 1e6:.3f}M",
                None if ratio is None else f"{ratio:.2f}",
                f"{group[0]['total_parameters'] / 1e6:.3f}M",
            ]
        )
    return table(header, lines)


def legend(results: dict[str, Any]) -> str:
    text = (
        "Figures are means over seeds. Loss is in nats a token on the validation text, and bits per byte are those of "
        "the same. Under the name of a text stands the perplexity of a token: documents do not share windows, windows "
        "do not overlap, every token is predicted once. Of LAMBADA it is that of the whole passage. L0 counts features "
        "above 0 per token, a mean over layers. Tokens and FLOPs include those of the run that a row started from. "
        "Active parameters are the weights multiplied for one token, the ratio theirs to those of a dense GELU model "
        "of the same widths."
    )
    if any("splice" in row for row in results["rows"]):
        text += " The figures of an autoencoder's row are the model's with the reconstruction in place of its stream."
    size = size_of(results["recipe"])
    if any(row["name"] in PERPLEXITIES[size] for row in results["rows"]):
        text += (
            f" The paper's ({size.capitalize()}) models saw some 33 billion tokens with a vocabulary of 50,257, so its "
            "figures are to be compared in their order, not their size; it does not say whether its MoE-X was upcycled."
        )
    lines = [
        [name, each["source"], each["sha256"][:16], *(f"{each[key]:,}" for key in ("documents", "words", "bytes"))]
        for name, each in results.get("texts", {}).items()
    ]
    about = "; ".join(f"{name}: {each['about']}" for name, each in results.get("texts", {}).items())
    read = table(["text", "source", "sha256", "documents", "words", "bytes"], lines) if lines else ""
    return "\n\n".join(part for part in (text, read, about and f"{about}.") if part)


def sections(rows: Sequence[Row]) -> list[str]:
    """Perplexity by the word and bits per byte of each text, and the layers."""
    lines = []
    for text in (each.removeprefix(PREFIX) for each in text_measures(rows)):
        for name, group in by_name(rows).items():
            last = [row["texts"][text]["last_word"] for row in group if "last_word" in row["texts"].get(text, {})]
            figures = [_mean_of(group, text, key) for key in ("loss", "perplexity", "word_perplexity", "bits_per_byte")]
            digits = (4, 2, 1, 4)
            shown = [_figure(each, n) for each, n in zip(figures, digits, strict=True)]
            words = _figure(_mean([each["perplexity"] for each in last]), 1)
            right = _mean([each["accuracy"] for each in last])
            lines.append([text, name, *shown, words, None if right is None else f"{right:.1%}"])
    header = ["text", "row", "loss", "per token", "per word", "bits per byte", "last word", "accuracy"]
    parts = []
    if lines:
        about = (
            "Perplexity of a token, of a word (words being what white space parts), and bits per byte. Last word: of "
            "a passage's last word given what stands before it, all of its tokens together, and how often each of them "
            "is the likeliest."
        )
        parts += ["## Text by text", about, table(header, lines)]
    return [*parts, *_layers(rows)]


def _layers(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        for at, layer in enumerate(row.get("sparsity", [])):
            load = layer.get("load")
            spread = None if load is None else f"{min(load):.3f} to {max(load):.3f}"
            activity = None if "activity" not in layer else f"{layer['activity']:.1%}"
            lines.append(
                [row["name"], row["seed"], at, f"{layer['l0']:.0f}", f"{layer['alive']:.1%}", activity, spread]
            )
    if not lines:
        return []
    about = (
        "Features above 0 per token; the share of them above 0 on at least one token; of the chosen experts' units, "
        "the share above 0; load, the share of the token-expert slots of an expert, least to most."
    )
    return ["## Layers", about, table(["row", "seed", "layer", "L0", "alive", "activity", "load"], lines)]


def _l0(row: Row) -> float | None:
    if "splice" in row:
        return float(row["splice"]["l0"])
    found = [layer["l0"] for layer in row.get("sparsity", [])]
    return statistics.fmean(found) if found else None


def _width(row: Row) -> str | None:
    """Features of a layer, as its configuration has them; None where that is not told by widths alone."""
    model = row["model"]
    if "splice" in row:
        return None if model.get("features") is None else f"{model['features']:,}"
    if model.get("ffn") in ("switch", "moe-x"):
        return f"{model['num_experts'] * model['active_width'] // model['experts_per_token']:,}"
    return f"{model['active_width']:,}" if model.get("ffn") in ("gelu", "relu") else None


def _mean_of(group: Sequence[Row], text: str, key: str) -> float | None:
    return _mean([row.get("texts", {}).get(text, {}).get(key) for row in group])


def _mean(values: Sequence[float | None]) -> float | None:
    given = [each for each in values if each is not None]
    return statistics.fmean(given) if given else None


def _figure(number: float | None, digits: int) -> str | None:
    return None if number is None else f"{number:.{digits}f}"
