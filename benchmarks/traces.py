"""Attribution graphs beside circuit-tracer's engine: the same Llama with random weights, the same transcoders, the same
prompt, all active features expanded on both sides. Edges are compared before times are."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM

from glassmoe.coders.configuration import CoderConfig
from glassmoe.coders.kinds import build_coder
from glassmoe.model.subject import Subject
from glassmoe.tracing.graph import ERROR, FEATURE, LOGIT, TOKEN, Graph
from glassmoe.tracing.tracer import Tracer

from .compare import ROOT, Sizes, ratios, row, skipped

NAME = "graph of a prompt, all active features"
VOCABULARY = 300
"""Tokens of the model: not its width, because circuit-tracer tells the axes of the unembedding apart by their sizes."""
BATCH = 256
"""Rows of a backward pass of circuit-tracer: of 64, 128, 256 and 512 the fastest here."""


def trace_rows(sizes: Sizes, python: Path | None) -> list[dict[str, Any]]:
    """Both engines in turn. `python`: the interpreter of an environment with circuit-tracer."""
    if python is None:
        return [
            skipped(
                NAME, "give the interpreter of an environment with circuit-tracer: --circuit-tracer PATH/bin/python"
            )
        ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tracer, ids = made_tracer(sizes, folder)
        ours, theirs = [], []
        with peer(python, folder) as their_seconds:
            for repeat in range(sizes.repeats + 1):
                began = time.perf_counter()
                graph = tracer.trace(ids, features=1 << 30, details=False)
                seconds = time.perf_counter() - began
                other = next(their_seconds)
                if repeat:
                    ours.append(seconds)
                    theirs.append(other)
        difference, edges = edge_difference(graph, load_file(folder / "edges.safetensors"))
    line = row(
        NAME,
        ratios(theirs, ours),
        of="speed of circuit-tracer",
        at_least=1.0,
        note=f"{graph.traced:,} features; {edges:,} edges are in both, and differ by {difference:.1e} of the largest",
        edge_difference=difference,
        edges=edges,
        seconds=ours,
        their_seconds=theirs,
    )
    return [line]


def made_tracer(sizes: Sizes, folder: Path) -> tuple[Tracer, list[int]]:
    """A Llama with random weights and transcoders of its MLPs, and a prompt; the same is written into `folder`."""
    torch.manual_seed(0)
    width, layers, features, k = sizes.trace_width, sizes.trace_layers, sizes.trace_features, sizes.trace_k
    config = LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * width, vocab_size=VOCABULARY, max_position_embeddings=64, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    subject = Subject.of("llama", model, Tokenizer(WordLevel(words, unk_token="w0")).to_str(), "w0")
    parts, coders = {}, {}
    for layer in range(layers):
        settings = CoderConfig(kind="transcoder", layer=layer, features=features, k=k, site="mlp")
        coder = build_coder(settings.complete(width, 1000), width, 100, 1000).eval().requires_grad_(False)
        for name, parameter in coder.named_parameters():
            parameter.normal_(0, 0.3)
            # Above 0, so that all k features of a token are active on both sides: theirs has no ReLU.
            parameter.add_(2.0 if name == "b_enc" else 0.0)
            coders[f"{layer}.{name}"] = parameter.data.clone()
        parts[f"{layer}/transcoder-k{k}"] = coder, subject.place(layer, "mlp")
    ids = [0, *torch.randint(1, VOCABULARY, (sizes.trace_tokens - 1,)).tolist()]
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, folder / "model.safetensors")
    save_file(coders, folder / "coders.safetensors")
    shape = {
        "layers": layers, "width": width, "heads": 4, "kv_heads": 2, "hidden": 2 * width, "context": 64,
        "vocab": VOCABULARY, "theta": float(config.rope_parameters["rope_theta"]), "eps": config.rms_norm_eps,
        "features": features, "k": k, "ids": ids, "batch": BATCH,
    }  # fmt: skip
    (folder / "shape.json").write_text(json.dumps(shape))
    return Tracer(subject, parts), ids


@contextmanager
def peer(python: Path, folder: Path) -> Iterator[Iterator[float]]:
    """circuit-tracer in a process of its own: each value that is asked for is the seconds of one graph. ValueError when
    it cannot be run."""
    log = folder / "peer.log"
    command = [str(python), str(ROOT / "benchmarks/trace_peer.py"), str(folder)]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdin and process.stdout

        def said() -> str:
            """What the next round took; their packages print other lines."""
            assert process.stdout
            for line in process.stdout:
                if line.startswith("round "):
                    return line.removeprefix("round ")
            last = (log.read_text().strip().splitlines() or ["it ended"])[-1]
            raise ValueError(f"--circuit-tracer: {python} cannot run circuit-tracer: {last}; install it there")

        def seconds() -> Iterator[float]:
            assert process.stdin
            while True:
                process.stdin.write("\n")
                process.stdin.flush()
                yield float(said())

        said()
        yield seconds()


def edge_difference(graph: Graph, theirs: dict[str, torch.Tensor]) -> tuple[float, int]:
    """The greatest difference between edges, as a share of the largest edge, and how many were compared. Theirs has no
    features and errors at the first token, so edges from and to these are left out."""
    length, layers = len(graph.tokens), graph.layers
    matrix = theirs["edges"].double().numpy()
    count = len(theirs["features"])
    number = {}
    for at, (layer, position, feature) in enumerate(theirs["features"].tolist()):
        number[FEATURE, layer, position, feature] = at
    for layer in range(layers):
        for position in range(1, length):
            number[ERROR, layer, position, -1] = count + layer * length + position
    for position in range(length):
        number[TOKEN, -1, position, -1] = count + layers * length + position
    for at, token in enumerate(theirs["targets"].tolist()):
        number[LOGIT, -1, -1, token] = count + (layers + 1) * length + at
    nodes = graph.nodes
    place = np.full(len(nodes), -1)
    for node, kind in enumerate(nodes.kind.tolist()):
        layer, position, feature = (int(getattr(nodes, name)[node]) for name in ("layer", "position", "feature"))
        key = {TOKEN: (kind, -1, position, -1), ERROR: (kind, layer, position, -1), LOGIT: (kind, -1, -1, feature)}
        place[node] = number.get(key.get(kind, (kind, layer, position, feature)), -1)
    source, target = place[graph.edges.source], place[graph.edges.target]
    both = (source >= 0) & (target >= 0)
    ours = graph.edges.weight[both].astype(float)
    same = matrix[target[both], source[both]]
    compared = np.zeros_like(matrix, dtype=bool)
    compared[target[both], source[both]] = True
    # What theirs has and ours lacks counts as a difference: the graph is small enough for whole rows to be kept.
    lost = np.abs(np.where(compared, 0, matrix)).max()
    return float(max(np.abs(ours - same).max(), lost) / np.abs(same).max()), int(both.sum())
