"""The page of a suite of text: perplexities of each row and of the paper, then words, bytes and layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glassmoe.layers.dense import gated_hidden
from glassmoe.measure.results_file import section
from glassmoe.model.replacing import GATED_LAYERS
from glassmoe.results import markdown_table

from .paper import perplexities, size_of
from .rows import COST, PREFIX, MeasuredRow, by_name, cost, mean_of, text_measures

if TYPE_CHECKING:
    from .tables import TableResults


def headline(suite: str, recipe: str, rows: Sequence[MeasuredRow]) -> str:
    """One line for each name, with means over its seeds."""
    texts = [each.removeprefix(PREFIX) for each in text_measures(rows)]
    theirs = {row.name: perplexities(suite, recipe, row.name) for row in rows}
    shown = {text: any(text in theirs[row.name] for row in rows) for text in texts}
    header = ["row", "seeds", "loss", "bits per byte"]
    for text in texts:
        header += [text, *(["paper"] if shown[text] else [])]
    header += ["L0", "of", *COST]
    lines = []
    for name, group in by_name(rows).items():
        figures: list[str | None] = []
        for text in texts:
            figures.append(_figure(_mean_of(group, text, "perplexity"), 2))
            if shown[text]:
                figures.append(_figure(theirs[name].get(text), 2))
        bits = [row.ppl["bits_per_byte"] for row in group if row.ppl]
        lines.append(
            [
                name,
                len(group),
                _figure(mean_of([row.value("loss") for row in group]), 4),
                _figure(mean_of(bits), 4),
                *figures,
                _figure(mean_of([_l0(row) for row in group]), 0),
                _width(group[0]),
                *cost(group),
            ]
        )
    return markdown_table(header, lines)


def legend(results: TableResults) -> str:
    text = (
        "Numbers are means over seeds. Loss is in nats per token on the validation text, and bits per byte are those "
        "of the same loss. The column of a text has the perplexity per token: windows do not overlap, documents do not "
        "share windows, and every token is predicted once. For LAMBADA it is that of the whole passage. L0 counts "
        "features above 0 per token, mean over layers. Tokens and FLOPs include those of the source run. Active "
        "parameters are the weights multiplied for one token; the ratio compares them with a dense GELU model of the "
        "same widths."
    )
    if any(row.splice is not None for row in results.entries):
        text += " An autoencoder has the numbers of the model with the reconstruction in place of its residual stream."
    if any(perplexities(results.suite, results.recipe, row.name) for row in results.entries):
        text += (
            f" The paper's ({size_of(results.recipe).capitalize()}) models saw about 33 billion tokens with a "
            "vocabulary of 50,257: compare the order of the rows, not the values. The paper does not say whether its "
            "MoE-X was upcycled."
        )
    lines = [
        [name, each.source, each.sha256[:16], *(f"{count:,}" for count in (each.documents, each.words, each.bytes))]
        for name, each in (results.texts or {}).items()
    ]
    about = "; ".join(f"{name}: {each.about}" for name, each in (results.texts or {}).items())
    read = markdown_table(["text", "source", "sha256", "documents", "words", "bytes"], lines) if lines else ""
    return "\n\n".join(part for part in (text, read, about and f"{about}.") if part)


def sections(rows: Sequence[MeasuredRow]) -> list[str]:
    """The sections on each text (perplexity per word, bits per byte) and on the layers."""
    lines = []
    for text in (each.removeprefix(PREFIX) for each in text_measures(rows)):
        for name, group in by_name(rows).items():
            measured = [(row.texts or {}).get(text, {}) for row in group]
            last = [each["last_word"] for each in measured if "last_word" in each]
            figures = [_mean_of(group, text, key) for key in ("loss", "perplexity", "word_perplexity", "bits_per_byte")]
            digits = (4, 2, 1, 4)
            shown = [_figure(each, n) for each, n in zip(figures, digits, strict=True)]
            words = _figure(mean_of([each["perplexity"] for each in last]), 1)
            right = mean_of([each["accuracy"] for each in last])
            lines.append([text, name, *shown, words, None if right is None else f"{right:.1%}"])
    header = ["text", "row", "loss", "per token", "per word", "bits per byte", "last word", "accuracy"]
    about = (
        "Perplexity per token and per word (words are separated by white space), and bits per byte. Last word: "
        "perplexity of a passage's last word given the text before it, over all of its tokens, and how often each of "
        "them is the most likely one."
    )
    return [*section("Text by text", about, header, lines), *_layers(rows)]


def _layers(rows: Sequence[MeasuredRow]) -> list[str]:
    lines = []
    for row in rows:
        for at, layer in enumerate(row.sparsity or []):
            load = layer.get("load")
            spread = None if load is None else f"{min(load):.3f} to {max(load):.3f}"
            activity = None if "activity" not in layer else f"{layer['activity']:.1%}"
            number = layer.get("layer", at)
            lines.append([row.name, row.seed, number, f"{layer['l0']:.0f}", f"{layer['alive']:.1%}", activity, spread])
    about = (
        "Features above 0 per token; share of the features above 0 on at least one token (alive); share of the chosen "
        "experts' units above 0 (activity); share of the token-expert slots of an expert, smallest to largest (load)."
    )
    return section("Layers", about, ["row", "seed", "layer", "L0", "alive", "activity", "load"], lines)


def _l0(row: MeasuredRow) -> float | None:
    if row.splice is not None:
        return float(row.splice["l0"])
    return mean_of(layer["l0"] for layer in row.sparsity or [])


def _width(row: MeasuredRow) -> str | None:
    """Number of features of a layer, from its configuration; None where the widths do not decide it."""
    model = row.model
    if row.splice is not None:
        return None if model.get("features") is None else f"{model['features']:,}"
    if model.get("ffn") in ("switch", "moe-x"):
        width = model["active_width"] // model["experts_per_token"]
        return f"{model['num_experts'] * (gated_hidden(width) if model.get('gated') else width):,}"
    if model.get("ffn") in GATED_LAYERS:
        return f"{gated_hidden(model['active_width']):,}"
    return f"{model['active_width']:,}" if model.get("ffn") in ("gelu", "relu") else None


def _mean_of(group: Sequence[MeasuredRow], text: str, key: str) -> float | None:
    return mean_of([(row.texts or {}).get(text, {}).get(key) for row in group])


def _figure(number: float | None, digits: int) -> str | None:
    return None if number is None else f"{number:.{digits}f}"
