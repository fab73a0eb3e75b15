"""Say why a model predicts a token: attribution graphs over its features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import Device, PathLike, count, count_or_zero, path_of, probability, public
from .targets import check_target

if TYPE_CHECKING:
    from glassmoe.tracing.graph import Graph


@public(
    features=count,
    check=count_or_zero,
    node=probability,
    edge=probability,
)
def trace(
    path: PathLike,
    *,
    prompt: str,
    target: str | None = None,
    against: str | None = None,
    coder: str | None = None,
    features: int = 7500,
    node: float = 0.8,
    edge: float = 0.98,
    check: int = 10,
    out: PathLike | None = None,
    site: PathLike | None = None,
    source: PathLike | None = None,
    device: Device = "auto",
) -> Graph:
    """Say why a model predicts a token: a graph of the features between a prompt and the logits.

    Args:
        path: A run directory, or what `decompose` made of a pretrained model.
        prompt: Text whose next token is explained.
        target: Token whose logit is explained (default: the likeliest tokens, together 95%).
        against: Token whose logit is subtracted from that of the target.
        coder: Of a sweep: which coders stand for the MLPs, such as transcoder-k32 (default: the only one of each
            layer).
        features: Features that are traced further, at most.
        node: Share of the influence that the nodes of the graph hold; 1 keeps all.
        edge: Share of the influence that their edges hold; 1 keeps all.
        check: Features that are switched off and doubled in the model, to compare what happens with the graph; 0
            leaves the check out.
        out: Folder to write: a page that opens from disk, the graph for `Graph.load`, and the same for other programs
            (the JSON of circuit-tracer's viewers, GraphML, SVG). Default: nothing is written.
        site: Folder of pages that `explore` wrote, to which the page links its features.
        source: Current path of the coders' model, if it moved.
        device: Where the model runs.

    Returns:
        The pruned `Graph`.

    Raises:
        ValueError: The model has no features to trace, the prompt is empty or longer than the context, or a token is no
            single token.
    """
    if site is not None and out is None:
        raise ValueError("site is what the page in the folder out links to; give both, or neither")
    path = path_of(path)
    check_target(path, None, coder)
    from glassmoe.console import say
    from glassmoe.inspect.model import Model
    from glassmoe.inspect.readers import open_readers
    from glassmoe.pages.trace.cards import open_examples
    from glassmoe.pages.trace.site import labelled, write_trace_site

    moved = None if source is None else str(source)
    subject, readers = open_readers(path, own=False, source=moved, device=device)
    graph = Model(subject, readers, Path(path)).trace(
        prompt, target=target, against=against, coder=coder, features=features, check=check
    )
    explored = open_examples(path, subject, readers)
    if out is not None:
        page = write_trace_site(graph, out, node=node, edge=edge, explored=explored, site=site)
        say(f"open in a browser: {page.site}")
    return labelled(graph.prune(node, edge), explored)
