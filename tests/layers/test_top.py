"""The greatest of short rows against `torch.topk`."""

from collections.abc import Iterator

import pytest
import torch

from glassmoe.layers import top
from glassmoe.layers.top import greatest


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ROWS = {
    "normal": lambda n: torch.randn(7, 3, n),
    "equal": lambda n: torch.randint(-2, 3, (7, 3, n)).float(),
    "neighbours": lambda n: (torch.ones(7, 3, n).view(torch.int32) + torch.randint(0, 9, (7, 3, n)).int()).view(
        torch.float32
    ),
    "tiny": lambda n: torch.randn(7, 3, n) * 1e-42,
    "huge": lambda n: torch.randn(7, 3, n) * 1e37,
    "zeros of both signs": lambda n: torch.zeros(7, 3, n) * torch.randn(7, 3, n).sign(),
    "not in order": lambda n: torch.randn(n, 3, 7).transpose(0, 2),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("k,n", [(1, 1), (4, 4), (3, 50), (16, 64), (5, 512), (5, 513)])
@pytest.mark.parametrize("rows", ROWS)
def test_greatest(rows: str, k: int, n: int) -> None:
    torch.manual_seed(n)
    s = ROWS[rows](n)
    before = s.clone()
    values, places = greatest(s, k)
    assert torch.equal(values, s.topk(k, dim=-1).values)
    assert torch.equal(s.gather(-1, places), values)
    assert all(len(set(row.tolist())) == len(row) for row in places.flatten(0, 1))
    assert torch.equal(s, before)


@pytest.mark.usefixtures("one_thread")
def test_both_ways_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    s = torch.randn(5, 40)
    sorted_, other = greatest(s, 6), greatest(s.double(), 6)
    monkeypatch.setattr(top, "MOST_THREADS", 0)
    found = greatest(s, 6)
    for one, two, three in zip(sorted_, other, found, strict=True):
        assert torch.equal(one, two.to(one.dtype)) and torch.equal(one, three)
