"""Reading and writing by listed rows against the sums written out, with every gradient, where few rows are listed and
where many are."""

import pytest
import torch

from glassmoe.layers.sparse_ops import DENSE_SHARE, read_rows, write_rows

TOKENS, WIDTH, LISTED = 19, 6, 4


def lists(features: int) -> torch.Tensor:
    """Ids of which some rows are never listed and one by nearly all."""
    ids = torch.stack([torch.randperm(features - 2)[:LISTED] for _ in range(TOKENS)])
    return torch.where((ids == 3).any(1, keepdim=True), ids, torch.cat([ids[:, 1:], torch.full((TOKENS, 1), 3)], 1))


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def same_gradients(
    found: torch.Tensor, expected: torch.Tensor, wanted: list[torch.Tensor], weight: torch.Tensor
) -> None:
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((y * weight).sum(), wanted, retain_graph=True) for y in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("features", [20, 100])
def test_reading_against_the_naive_twin(features: int) -> None:
    torch.manual_seed(0)
    x, w, b, ids = leaf(TOKENS, WIDTH), leaf(features, WIDTH), leaf(features), lists(features)
    assert (features < LISTED * DENSE_SHARE) == (features == 20)
    rows = [[torch.relu((w[f] * x[t]).sum() + b[f]) for f in ids[t].tolist()] for t in range(TOKENS)]
    expected = torch.stack([torch.stack(row) for row in rows])
    assert bool((expected == 0).any())
    found = read_rows(x, w, b, ids, expected.detach())
    same_gradients(found, expected, [x, w, b], torch.randn(TOKENS, LISTED, dtype=torch.float64))
    # Of a frozen decoder, or of a stream that needs none, no gradient is made.
    (alone,) = torch.autograd.grad(read_rows(x.detach(), w.detach(), b, ids, expected.detach()).sum(), [b])
    torch.testing.assert_close(alone, torch.autograd.grad(expected.sum(), [b])[0])


@pytest.mark.parametrize("features", [20, 100])
def test_writing_against_the_naive_twin(features: int) -> None:
    torch.manual_seed(0)
    values, w, ids = leaf(TOKENS, LISTED), leaf(features, WIDTH), lists(features)
    ids[0, 0] = ids[0, 1]  # listed twice, as after an edit
    expected = torch.stack([sum(values[t, a] * w[ids[t, a]] for a in range(LISTED)) for t in range(TOKENS)])
    found = write_rows(values, ids, w)
    same_gradients(found, expected, [values, w], torch.randn(TOKENS, WIDTH, dtype=torch.float64))


def test_places_that_only_fill_a_list_pass_nothing_back() -> None:
    torch.manual_seed(0)
    x, w, b = leaf(2, WIDTH), leaf(100, WIDTH), leaf(100)
    ids, known = torch.tensor([[5, 0], [7, 8]]), torch.tensor([[0.5, 0.0], [1.0, 2.0]], dtype=torch.float64)
    (g,) = torch.autograd.grad(read_rows(x, w, b, ids, known).sum(), [b])
    assert g.nonzero().flatten().tolist() == [5, 7, 8]
