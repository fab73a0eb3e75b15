"""Memory that large tensors use again: never two at a time, and the same numbers as in fresh memory."""

import copy

import pytest
import torch

from glassmoe.layers import reused
from glassmoe.layers.moe import MoE
from glassmoe.layers.reused import Reused


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reused, "LEAST_BYTES", 1024)


def test_a_block_is_lent_again_only_when_nothing_uses_it() -> None:
    memory, w = Reused(), torch.zeros(16, 32)
    first = memory.empty_like(w).fill_(1)
    view, address = first[3:], first.data_ptr()
    second = memory.empty_like(w).fill_(2)
    assert (first == 1).all() and second.data_ptr() != address
    del first
    assert memory.empty_like(w).fill_(3).data_ptr() != address, "a view still uses the block"
    assert (view == 1).all()
    del view
    assert memory.empty_like(w).data_ptr() == address
    assert address % reused.ALIGNMENT == 0


def test_small_tensors_and_other_kinds_get_memory_of_their_own() -> None:
    memory = Reused()
    small, half = memory.empty_like(torch.zeros(4, 4)), memory.empty_like(torch.zeros(16, 32), torch.bfloat16)
    assert small.shape == (4, 4) and half.dtype == torch.bfloat16
    assert memory.empty_like(torch.zeros(99, 99, device="meta")).device.type == "meta"
    assert len(memory.blocks) == 1


@pytest.mark.parametrize("router", ["sparsity", "learned"])
def test_training_reuses_gradients_and_changes_no_bit(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = MoE(8, 16, num_experts=4, router=router)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    twin, x = copy.deepcopy(layer), torch.randn(3, 2, 20, 8)

    def train(layer: MoE) -> tuple[list[torch.Tensor], set[int]]:
        optimizer, addresses, gradients = torch.optim.AdamW(layer.parameters()), set(), []
        for passes in x:
            optimizer.zero_grad()
            for x_TD in passes:  # the second pass adds to the gradients of the first
                with torch.autocast("cpu", torch.bfloat16):
                    y, losses = layer(x_TD)
                (y.float().square().sum() + sum(losses.values())).backward()
            gradients += [p.grad.clone() for p in layer.parameters()]
            addresses.add(layer.w_dec.grad.data_ptr())
            optimizer.step()
        return [*gradients, *(p.detach() for p in layer.parameters())], addresses

    found, addresses = train(layer)
    # At most what a step needs at a time, however many steps there were.
    assert layer._memory.blocks and len(layer._memory.blocks) <= 10
    blocks = {block.ctypes.data for block, _ in layer._memory.blocks}
    assert addresses <= blocks and layer.w_enc.grad.data_ptr() in blocks
    monkeypatch.setattr(reused, "LEAST_BYTES", 1 << 40)
    expected, _ = train(twin)
    assert not twin._memory.blocks
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert not copy.deepcopy(layer)._memory.blocks
