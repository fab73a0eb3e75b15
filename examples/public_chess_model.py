"""Check the boards measure against published numbers: the 8-layer chess model of Karvonen et al. (2024).

The model is a nanoGPT checkpoint (`adamkarvonen/8LayerChessGPT2` and the files beside it); with it and some thousand
games of its kind:

    python examples/public_chess_model.py lichess_8layers_ckpt.pt runs/public
    glassmoe eval boards runs/public --data data/games --layers 5

Published for its MLP neurons at layer 5, on 1,000 + 1,000 games of Lichess: coverage 0.256, reconstruction 0.561; the
whole sweep is in SAE_BoardGameEval. NOT YET RUN here: the checkpoint was not at hand. What is tested is that a
checkpoint of this form, with random weights, gives nanoGPT's own logits (tests/test_examples.py).
"""

import sys
from pathlib import Path

import torch

from glassmoe.model import GlassConfig, GlassForCausalLM

NAMES = {
    "ln_1.weight": "attention_norm.weight",
    "attn.c_attn.weight": "attention.qkv.weight",
    "attn.c_proj.weight": "attention.out.weight",
    "ln_2.weight": "ffn_norm.weight",
    "mlp.c_fc.weight": "ffn.w_enc",
    "mlp.c_proj.weight": "ffn.w_dec",
}


def from_nanogpt(state: dict[str, torch.Tensor], heads: int) -> GlassForCausalLM:
    """Our dense GELU model with the weights of a nanoGPT state dict that has no biases. KeyError for other forms."""
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    vocabulary, width = state["transformer.wte.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer.h."))
    hidden = state["transformer.h.0.mlp.c_fc.weight"].shape[0]
    context = len(state["transformer.wpe.weight"])
    sizes = {"layers": layers, "heads": heads, "width": width, "active_width": hidden, "context": context}
    model = GlassForCausalLM(GlassConfig(ffn="gelu", vocab_size=vocabulary, **sizes))
    ours = {
        "model.tokens.weight": state["transformer.wte.weight"],
        "lm_head.weight": state["transformer.wte.weight"],
        "model.positions.weight": state["transformer.wpe.weight"],
        "model.norm.weight": state["transformer.ln_f.weight"],
    }
    for i in range(layers):
        for theirs, own in NAMES.items():
            tensor = state[f"transformer.h.{i}.{theirs}"]
            # Row f of our decoder is what feature f writes; a linear map has it as a column.
            ours[f"model.layers.{i}.{own}"] = tensor.T.contiguous() if own == "ffn.w_dec" else tensor
    model.load_state_dict(ours)
    return model.eval()


if __name__ == "__main__":
    checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
    # weights_only: nothing but tensors and plain values is taken out of the pickle.
    read = torch.load(checkpoint, map_location="cpu", weights_only=True)
    from_nanogpt(read["model"], heads=read["model_args"]["n_head"]).save_pretrained(out)
    sys.stdout.write(f"{out}\n")
