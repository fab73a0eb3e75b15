"""Say why a model predicts a token: attribution graphs over its features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .arguments import Device, PathLike, count, count_or_zero, one_of, probability, public
from .targets import check_target

if TYPE_CHECKING:
    from glassmoe.tracing.graph import Graph


@public(
    features=count,
    check=count_or_zero,
    node=probability,
    edge=probability,
    export=one_of("circuit-tracer", "graphml", "svg"),
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
    export: Literal["circuit-tracer", "graphml", "svg"] | None = None,
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
        out: Folder to write the graph to (default: it is only returned).
        export: Also write the graph to the folder for other programs: the JSON of circuit-tracer's viewers, GraphML, or
            a picture.
        source: Current path of the coders' model, if it moved.
        device: Where the model runs.

    Returns:
        The pruned `Graph`.

    Raises:
        ValueError: The model has no features to trace, the prompt is empty or longer than the context, or a token is no
            single token.
    """
    if export is not None and out is None:
        raise ValueError("export writes a file into the folder out; give both, or neither")
    check_target(path, None, coder)
    from glassmoe.inspect.model import Model
    from glassmoe.inspect.readers import open_readers

    moved = None if source is None else str(source)
    model = Model(*open_readers(path, own=False, source=moved, device=device), Path(path))
    graph = model.trace(prompt, target=target, against=against, coder=coder, features=features, check=check)
    graph = graph.prune(node, edge)
    if out is not None:
        graph.save(out)
        if export is not None:
            from glassmoe.tracing.exports import write_export

            write_export(graph, export, Path(out))
    return graph
