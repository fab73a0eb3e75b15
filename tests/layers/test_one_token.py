"""Products of one token with large matrices, beside torch's own."""

import pytest
import torch
import torch.nn.functional as F

from glassmoe.layers import one_token
from glassmoe.layers.dense import GLU, Dense, SoLU
from glassmoe.layers.one_token import combined, combined_active, is_one, linear


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_token, "LARGE", 96)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(12,), (1, 12), (1, 1, 12)])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_products_equal_those_of_torch(shape: tuple[int, ...], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, w, b = drawn(*shape), drawn(9, 12), drawn(9)
    back, view = drawn(*shape[:-1], 9), drawn(12, 9).T
    with torch.no_grad():
        assert is_one(x, w)
        for bias in (None, b):
            torch.testing.assert_close(linear(x, w, bias), F.linear(x, w, bias))
        torch.testing.assert_close(combined(back, w), back @ w)
        torch.testing.assert_close(linear(x, view), F.linear(x, view))
        torch.testing.assert_close(combined(back, view), back @ view)


def test_rows_that_are_zero_are_not_read() -> None:
    """By hand: 2 * row 1 - 1 * row 3; the other rows would spoil the sum."""
    w = torch.full((4, 3), torch.nan)
    w[1], w[3] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, -1.0])
    with torch.no_grad():
        assert combined_active(torch.tensor([[0.0, 2.0, 0.0, -1.0]]), w).tolist() == [[1.0, 4.0, 7.0]]
        assert combined_active(torch.zeros(1, 4), w).tolist() == [[0.0, 0.0, 0.0]]
        h, w = drawn(1, 9).relu(), drawn(9, 12)
        for dtype in (torch.float32, torch.bfloat16):
            number, rows = h.to(dtype), w.to(dtype)
            torch.testing.assert_close(combined_active(number, rows, 0.5), (number * 0.5) @ rows)


def test_all_else_goes_to_torch() -> None:
    x, w = drawn(1, 12), drawn(9, 12)
    with torch.no_grad():
        assert not is_one(drawn(2, 12), w) and not is_one(x, drawn(7, 12)) and not is_one(drawn(0, 12), w)
        assert not is_one(x.bfloat16(), w.bfloat16()) and not is_one(x.double(), w.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_one(x, w) and linear(x, w).dtype == torch.bfloat16
    assert not is_one(x, w)
    w.requires_grad_()
    linear(x, w).sum().backward()
    torch.testing.assert_close(w.grad, x.expand(9, 12))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["gelu", "reglu", "solu"])
def test_layers_give_one_token_what_they_give_many(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    layer = {"gelu": Dense(12, 40, bias=bias), "reglu": GLU(12, 40, "relu", bias), "solu": SoLU(12, 40, bias)}[kind]
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x = drawn(5, 12)
    with torch.no_grad():
        one_by_one = torch.cat([layer(x[i : i + 1])[0] for i in range(5)])
        torch.testing.assert_close(one_by_one, layer(x)[0], rtol=1e-5, atol=1e-4)
