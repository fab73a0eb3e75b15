"""circuit-tracer's side of the comparison of attribution graphs. It runs in an environment of its own, because that
package needs another transformers than glassmoe; `traces.py` starts it and reads what it writes.

    python trace_peer.py FOLDER

FOLDER holds `model.safetensors` (a Llama by transformers' names), `coders.safetensors` (`LAYER.w_enc` and so on) and
`shape.json`. It says `round 0` when it is ready. Then it waits for a line on standard input before each round and
answers `round SECONDS`. At the end of the input it writes `edges.safetensors`: edges, active features and logits.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    """Answer every line of standard input with the seconds of one graph."""
    torch.set_num_threads(1)
    model, shape = replacement_model(folder), json.loads((folder / "shape.json").read_text())
    from circuit_tracer.attribution.attribute import attribute

    graph = None
    said("round 0")
    for _ in sys.stdin:
        began = time.perf_counter()
        graph = attribute(torch.tensor(shape["ids"]), model, batch_size=shape["batch"])
        said(f"round {time.perf_counter() - began}")
    assert graph is not None
    targets = torch.tensor([int(each.vocab_idx) for each in graph.logit_targets])
    save_file(
        {
            "edges": graph.adjacency_matrix.contiguous(),
            "features": graph.active_features.contiguous(),
            "strengths": graph.activation_values.contiguous(),
            "targets": targets,
            "probabilities": graph.logit_probabilities.float().contiguous(),
        },
        folder / "edges.safetensors",
    )


def said(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def replacement_model(folder: Path) -> Any:
    """Their model, with the weights in `folder`."""
    from circuit_tracer import ReplacementModel
    from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
    from circuit_tracer.transcoder.activation_functions import TopK
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformer_lens import HookedTransformerConfig
    from transformers import PreTrainedTokenizerFast

    shape = json.loads((folder / "shape.json").read_text())
    weights, coders = load_file(folder / "model.safetensors"), load_file(folder / "coders.safetensors")
    width, heads, kv_heads = shape["width"], shape["heads"], shape["kv_heads"]
    config = HookedTransformerConfig(
        n_layers=shape["layers"], d_model=width, n_heads=heads, d_head=width // heads, d_mlp=shape["hidden"],
        n_ctx=shape["context"], d_vocab=shape["vocab"], act_fn="silu", gated_mlp=True, normalization_type="RMS",
        final_rms=True, positional_embedding_type="rotary", rotary_dim=width // heads,
        rotary_base=shape["theta"], rotary_adjacent_pairs=False, n_key_value_heads=kv_heads, eps=shape["eps"],
        original_architecture="LlamaForCausalLM", model_name="llama", dtype=torch.float32, device="cpu",
    )  # fmt: skip
    made = {}
    for layer in range(shape["layers"]):
        coder = SingleLayerTranscoder(
            width, shape["features"], TopK(shape["k"]), layer, device=torch.device("cpu"), dtype=torch.float32
        )
        for theirs, ours in (("W_enc", "w_enc"), ("W_dec", "w_dec"), ("b_enc", "b_enc"), ("b_dec", "b_dec")):
            getattr(coder, theirs).data.copy_(coders[f"{layer}.{ours}"])
        made[layer] = coder
    transcoders = TranscoderSet(made, feature_input_hook="mlp.hook_in", feature_output_hook="mlp.hook_out")
    # The prompt begins with its own special token, so that none is added.
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(shape["vocab"])}, unk_token="w0"))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, name_or_path=str(folder), add_bos_token=True, **special)
    model = ReplacementModel.from_config(config, transcoders, tokenizer=tokenizer)
    with torch.no_grad():
        copy_weights(model, weights, heads, kv_heads)
    return model


def copy_weights(model: Any, weights: dict[str, torch.Tensor], heads: int, kv_heads: int) -> None:
    """Fill their model from the weights of a Llama."""

    def by_head(name: str, count: int) -> torch.Tensor:
        matrix = weights[name]
        return matrix.view(count, -1, matrix.shape[1]).transpose(1, 2)

    model.embed.W_E.copy_(weights["model.embed_tokens.weight"])
    model.unembed.old_unembed.W_U.copy_(weights["lm_head.weight"].T)
    model.unembed.old_unembed.b_U.zero_()
    model.ln_final.w.copy_(weights["model.norm.weight"])
    for number, block in enumerate(model.blocks):
        its = f"model.layers.{number}"
        block.ln1.w.copy_(weights[f"{its}.input_layernorm.weight"])
        block.ln2.w.copy_(weights[f"{its}.post_attention_layernorm.weight"])
        block.attn.W_Q.copy_(by_head(f"{its}.self_attn.q_proj.weight", heads))
        block.attn._W_K.copy_(by_head(f"{its}.self_attn.k_proj.weight", kv_heads))
        block.attn._W_V.copy_(by_head(f"{its}.self_attn.v_proj.weight", kv_heads))
        out = weights[f"{its}.self_attn.o_proj.weight"]
        block.attn.W_O.copy_(out.T.reshape(heads, -1, out.shape[0]))
        for name in ("b_Q", "_b_K", "_b_V", "b_O"):
            getattr(block.attn, name).zero_()
        mlp = block.mlp.old_mlp
        mlp.W_gate.copy_(weights[f"{its}.mlp.gate_proj.weight"].T)
        mlp.W_in.copy_(weights[f"{its}.mlp.up_proj.weight"].T)
        mlp.W_out.copy_(weights[f"{its}.mlp.down_proj.weight"].T)
        mlp.b_in.zero_()
        mlp.b_out.zero_()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
