"""Settings that save memory change no numbers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from glassmoe.model import FEED_FORWARD, GlassConfig, GlassForCausalLM, chunked_loss
from glassmoe.model import loss as losses
from glassmoe.training.language import train
from tiny_runs import tensors_of, tiny


@pytest.mark.parametrize("ffn", FEED_FORWARD)
def test_recomputed_activations_give_the_same_bits(ffn: str, noise_games: Path, tmp_path: Path) -> None:
    """Also the running statistics of PEER and Monet, which a second forward pass must not move."""
    plain, again = (
        train(tiny(noise_games, ffn, steps=2, recompute=recompute, eval_every=2), tmp_path / str(recompute))
        for recompute in (False, True)
    )
    ours, theirs = (tensors_of(run / "state" / "step-00000002.safetensors") for run in (plain, again))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("tied", [True, False])
def test_a_loss_in_chunks_is_that_of_all_logits(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shape = {"layers": 1, "heads": 2, "width": 16, "active_width": 16, "num_experts": 2, "context": 16}
    model = GlassForCausalLM(GlassConfig(vocab_size=37, tie_word_embeddings=tied, **shape)).train()
    tokens, lengths = torch.randint(37, (3, 9)), torch.tensor([9, 1, 5])
    found = []
    for most in (10**9, 37 * 5):  # all at once, and five tokens of 24 at a time
        monkeypatch.setattr(chunked_loss, "MOST_LOGITS", most)
        model.zero_grad()
        loss, _ = losses.next_token_loss(model, tokens, lengths)
        loss.backward()
        found.append((loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (whole, gradients), (chunks, pieces) = found
    torch.testing.assert_close(whole, chunks)
    inputs, labels = losses.inputs_and_labels(tokens, lengths)
    logits = model(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
    torch.testing.assert_close(whole, F.cross_entropy(logits, labels.flatten(), reduction="sum").detach())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, pieces[name])
