"""Rows that are read ahead of their step: the same rows in the same order, also after a kill."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from glassmoe.data.corpus import Corpus, Rows, row_indices
from glassmoe.model.chunked_loss import IGNORED
from glassmoe.model.loss import inputs_and_labels
from glassmoe.training import language
from glassmoe.training.batches import ReadAhead, labelled_positions, pass_rows, read_rows
from glassmoe.training.language import train
from tiny_runs import Interrupt, assert_same_bits, stop_after, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_steps_come_in_order_and_once(ahead: int) -> None:
    asked: list[tuple[int, bool]] = []

    def read(step: int) -> int:
        asked.append((step, threading.current_thread() is threading.main_thread()))
        return step * step

    steps = ReadAhead(read, ahead)
    assert [steps(step) for step in range(5, 10)] == [25, 36, 49, 64, 81]
    assert steps(20) == 400  # a run that is resumed begins anywhere
    numbers = [step for step, _ in asked]
    assert len(set(numbers)) == len(numbers) and {5, 6, 7, 8, 9, 20} <= set(numbers)
    assert all(in_main is (ahead == 0) for _, in_main in asked)


def test_what_a_read_raises_reaches_its_step() -> None:
    def read(step: int) -> int:
        if step == 2:
            raise OSError("the disk is gone")
        return step

    steps = ReadAhead(read, 2)
    assert [steps(0), steps(1)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        steps(2)


def test_rows_that_are_read_ahead_give_the_same_run(
    noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(tiny(noise_games), tmp_path / "plain")
    monkeypatch.setattr(language, "ReadAhead", lambda read, ahead: ReadAhead(read, ahead + 2))
    assert_same_bits(plain, train(tiny(noise_games), tmp_path / "ahead"))
    with monkeypatch.context() as patched, pytest.raises(Interrupt):
        stop_after(4, patched)
        train(tiny(noise_games), tmp_path / "broken")
    assert_same_bits(plain, train(tiny(noise_games), tmp_path / "broken"))


def test_a_process_reads_its_rows_and_counts_all_labels(noise_games: Path) -> None:
    rows = Rows(Corpus.open(noise_games).split("train"), "games:64")
    indices = row_indices(len(rows), 0, 3, 8)
    tokens, lengths = rows.batch(indices)
    assert np.array_equal(rows.lengths(indices), lengths)
    own = read_rows(rows, indices, slice(2, 5), CPU, document_mask=True)
    assert np.array_equal(own.tokens_RN.numpy(), tokens[2:5]) and np.array_equal(own.lengths_R.numpy(), lengths[2:5])
    assert own.labels == int((lengths - 1).sum()) and own.documents_RN is not None
    some = pass_rows(own, slice(1, 3), CPU)
    assert some.tokens_BN.dtype == torch.int64 and np.array_equal(some.tokens_BN.numpy(), tokens[3:5])
    nothing = pass_rows(own, slice(3, 3), CPU)
    assert nothing.tokens_BN.shape == (1, 64) and nothing.lengths_B.tolist() == [0]


def test_positions_with_a_label_are_those_of_the_loss() -> None:
    tokens, lengths = torch.randint(9, (4, 7)), torch.tensor([7, 1, 0, 4])
    _, labels = inputs_and_labels(tokens, lengths)
    expected = (labels != IGNORED).flatten().nonzero().flatten()
    assert labelled_positions(lengths, 6).equal(expected)
