"""The examples do what they say."""

import math
import runpy
from pathlib import Path

import torch
import torch.nn.functional as F

import forked

EXAMPLES = Path(__file__).parents[1] / "examples"


def nanogpt_logits(state: dict[str, torch.Tensor], tokens_BS: torch.Tensor, heads: int) -> torch.Tensor:
    """nanoGPT's forward pass without biases, written out."""
    batch, length = tokens_BS.shape
    x = state["transformer.wte.weight"][tokens_BS] + state["transformer.wpe.weight"][:length]
    width = x.shape[-1]
    later = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (width,), state[name])

    for i in range(2):
        h = f"transformer.h.{i}."
        q, k, v = (norm(x, h + "ln_1.weight") @ state[h + "attn.c_attn.weight"].T).split(width, dim=2)
        q, k, v = (t.view(batch, length, heads, -1).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.mT / math.sqrt(width // heads)).masked_fill(later, -math.inf).softmax(-1)
        mixed = (scores @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + mixed @ state[h + "attn.c_proj.weight"].T
        hidden = F.gelu(norm(x, h + "ln_2.weight") @ state[h + "mlp.c_fc.weight"].T)
        x = x + hidden @ state[h + "mlp.c_proj.weight"].T
    return norm(x, "transformer.ln_f.weight") @ state["transformer.wte.weight"].T


@torch.no_grad()
def test_a_nanogpt_checkpoint_gives_its_own_logits_here() -> None:
    torch.manual_seed(0)
    width, hidden = 16, 32
    shapes = {
        "ln_1.weight": (width,),
        "attn.c_attn.weight": (3 * width, width),
        "attn.c_proj.weight": (width, width),
        "ln_2.weight": (width,),
        "mlp.c_fc.weight": (hidden, width),
        "mlp.c_proj.weight": (width, hidden),
    }
    state = {f"transformer.h.{i}.{name}": torch.randn(shape) for i in range(2) for name, shape in shapes.items()}
    state |= {"transformer.wte.weight": torch.randn(32, width), "transformer.wpe.weight": torch.randn(20, width)}
    state |= {"transformer.ln_f.weight": torch.randn(width)}
    made = runpy.run_path(str(EXAMPLES / "public_chess_model.py"))["from_nanogpt"]
    model = made({f"_orig_mod.{name}": tensor for name, tensor in state.items()}, heads=4)
    tokens_BS = torch.randint(32, (3, 15))
    torch.testing.assert_close(
        model(input_ids=tokens_BS).logits, nanogpt_logits(state, tokens_BS, 4), atol=1e-4, rtol=1e-4
    )


def test_a_coder_in_one_file_is_fitted_and_measured(noise_games: Path, tmp_path: Path) -> None:
    from glassmoe.training.language import train
    from tiny_runs import tiny

    source = train(tiny(noise_games, "gelu"), tmp_path / "run")
    options = (
        f"{source} --layer 1 --site stream --features 24 --tokens 1024 --batch-tokens 256 --out {tmp_path / 'out'}"
    )
    done = forked.run(options.split(), program=forked.script(EXAMPLES / "new_coder.py"))
    assert done.returncode == 0, done.stderr
    assert "1/sae-fixed-threshold" in done.stdout and "loss" in done.stdout
