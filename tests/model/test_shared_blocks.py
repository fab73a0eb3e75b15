"""Passes that start at a place against whole passes with the same change there, in many families of models."""

from typing import Any

import pytest
import torch

from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.model.loss import next_token_loss
from glassmoe.model.shared_blocks import SharedBlocks
from glassmoe.model.subject import place_in, reading, replaced
from model_families import FAMILIES, MIXTURES, TOKENS, gemma3, of_family

LENGTHS = torch.tensor([9, 6])
LAYERS = 3
OTHERS = TOKENS.flip(0)


def ours() -> GlassForCausalLM:
    torch.manual_seed(0)
    return GlassForCausalLM(
        GlassConfig(ffn="moe-x", width=16, layers=LAYERS, heads=2, active_width=32, context=64, vocab_size=300)
    ).eval()


def some_model(family: str) -> Any:
    return {"ours": ours, "gemma3": gemma3}.get(family, lambda: of_family(family))()


def count_blocks(model: Any) -> list[int]:
    """Numbers of the blocks whose MLPs are computed from now on."""
    computed: list[int] = []
    for number in range(LAYERS):
        module = model.get_submodule(place_in(model, number, "mlp").module)
        module.register_forward_hook(lambda *_, number=number: computed.append(number))
    return computed


@pytest.mark.parametrize("family", ["ours", "gemma3", *FAMILIES, *MIXTURES])
@torch.no_grad()
def test_passes_from_a_place_equal_whole_passes(family: str) -> None:
    model = some_model(family)
    places = [place_in(model, number, site) for number in range(LAYERS) for site in ("mlp", "stream")]
    shared = SharedBlocks(model, places)
    for tokens in (OTHERS, TOKENS):
        with shared.kept(), reading(model, places, tokens[:, :-1]) as read:
            own = float(next_token_loss(model, tokens, LENGTHS)[0])
        assert own == float(next_token_loss(model, tokens, LENGTHS)[0])
        for place in places:
            y = read[place].y
            for changed in (torch.zeros_like(y), y.roll(1, 1), y):
                with replaced(model, place, lambda _, out, new=changed: new.clone().view(out.shape)):
                    whole = float(next_token_loss(model, tokens, LENGTHS)[0])
                    with shared.skipped(place):
                        assert float(next_token_loss(model, tokens, LENGTHS)[0]) == pytest.approx(whole, rel=1e-6)
            assert whole == pytest.approx(own, rel=1e-5)  # its own output in its place
    # Nothing is left in the model.
    assert float(next_token_loss(model, TOKENS, LENGTHS)[0]) == own
    assert [shared.shares(place) for place in places] == [False, *[True] * 5]  # nothing lies before the first MLP


@torch.no_grad()
def test_blocks_before_a_place_are_not_computed_again() -> None:
    model = of_family("llama")
    place = place_in(model, 1, "mlp")
    shared, computed = SharedBlocks(model, [place]), count_blocks(model)
    with shared.kept():
        next_token_loss(model, TOKENS, LENGTHS)
    with shared.skipped(place):
        next_token_loss(model, TOKENS, LENGTHS)
    assert computed == [0, 1, 2, 1, 2]


@torch.no_grad()
def test_a_model_whose_blocks_share_more_than_their_output_is_computed_as_a_whole() -> None:
    """The last block adds what the first one saw."""
    model = of_family("llama")
    first, *_, last = model.model.layers
    usual, seen = last.forward, []
    first.mlp.register_forward_hook(lambda _, __, out: seen.append(out))
    last.forward = lambda *args, **kwargs: usual(*args, **kwargs) + seen[-1].sum()
    place = place_in(model, 1, "mlp")
    shared, computed = SharedBlocks(model, [place]), count_blocks(model)
    assert not shared.shares(place)
    with shared.kept():
        next_token_loss(model, TOKENS, LENGTHS)
    with shared.skipped(place):
        next_token_loss(model, TOKENS, LENGTHS)
    assert computed == [0, 1, 2, 0, 1, 2]


@torch.no_grad()
def test_a_forward_that_another_package_set_is_put_back() -> None:
    model = of_family("gpt2")
    place, block = place_in(model, 2, "mlp"), model.transformer.h[0]
    wrapped = block.forward
    block.forward = lambda *args, **kwargs: wrapped(*args, **kwargs)
    set_by_another = block.forward
    shared = SharedBlocks(model, [place])
    assert block.forward is set_by_another
    with shared.kept():
        model(input_ids=TOKENS)
    with shared.skipped(place):
        model(input_ids=TOKENS)
    assert block.forward is set_by_another and "forward" not in vars(model.transformer.h[1])
