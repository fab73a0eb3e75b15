"""Checksums in files: flipped bits are noticed, files without a checksum are accepted, and the umask is followed."""

import json
import os
import random
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from glassmoe import checksums
from glassmoe.checksums import Damaged, parse_lines, read_json, save_tensors, seal, verify_tensors, with_checksum

TENSORS = {"a": torch.arange(40.0).view(5, 8), "b": torch.arange(3)}


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@pytest.mark.parametrize("own", [True, False])
def test_every_flipped_bit_of_tensors_is_noticed_or_changes_nothing(own: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if own:
        save_tensors(path, TENSORS, save_file, {"step": "3"})
    else:  # as transformers writes it
        save_file(TENSORS, path, {"step": "3"})
        before = path.read_bytes()
        seal(path)
        assert path.read_bytes().endswith(before[8 + int.from_bytes(before[:8], "little") :])
    verify_tensors(path)
    with safe_open(path, "pt") as file:
        assert file.metadata().keys() == {"step", "checksum"} and file.metadata()["step"] == "3"
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        path.write_bytes(flipped(whole, bit))
        try:
            verify_tensors(path)
            with safe_open(path, "pt") as file:
                assert file.metadata()["step"] == "3"
            held = load_file(path)
        except (Damaged, SafetensorError, KeyError, TypeError):
            continue
        assert held.keys() == TENSORS.keys() and all(torch.equal(held[name], TENSORS[name]) for name in held)


def test_a_header_grows_in_place_whatever_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "CHUNK", 100)
    for size in (0, 1, 99, 100, 101, 1000):
        arrays = {"x": np.arange(size, dtype=np.uint8), "y": np.arange(3.0)}
        save_arrays(arrays, tmp_path / "x.safetensors")
        seal(tmp_path / "x.safetensors")
        verify_tensors(tmp_path / "x.safetensors")
        held = load_file(tmp_path / "x.safetensors")
        assert all(np.array_equal(held[name].numpy(), arrays[name]) for name in arrays)


def test_files_without_a_checksum_are_accepted(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    verify_tensors(tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    assert parse_lines(tmp_path / "x.jsonl") == ([{"a": 1}, {"a": 2}], [], False)


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, save_file)
    verify_tensors(path)
    before = path.stat()
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Damaged, match=r"x\.safetensors is damaged: it differs from the checksum"):
        verify_tensors(path)


VALUES = {"a": 1.5, "b": [True, None, "é😀"], 3: {"2": float("inf"), "10": -0.0}, "c": 10**30}


def test_every_flipped_bit_of_json_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(with_checksum(VALUES), indent=1, ensure_ascii=False))
    whole, values = path.read_bytes(), json.loads(json.dumps(VALUES))
    assert read_json(path) == values
    for bit in range(len(whole) * 8):
        path.write_bytes(flipped(whole, bit))
        try:
            held = read_json(path)
        except ValueError:
            continue
        # Another name of the checksum's key makes it one more value.
        assert {key: held[key] for key in values} == values


def test_every_flipped_bit_of_lines_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = [{"step": step, "loss": step / 7, "name": "n"} for step in range(4)]
    path.write_text("".join(json.dumps(with_checksum(line)) + "\n" for line in lines))
    whole = path.read_bytes()
    assert parse_lines(path) == (lines, [], False)
    for bit in random.Random(0).sample(range(len(whole) * 8), 1500):
        path.write_bytes(flipped(whole, bit))
        held, damaged, cut = parse_lines(path)
        assert held == lines or damaged or cut
    path.write_bytes(whole[:-30])
    assert parse_lines(path) == (lines[:-1], [], True)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_follow_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "own.safetensors", TENSORS, save_file)
        save_file(TENSORS, tmp_path / "theirs.safetensors")
        seal(tmp_path / "theirs.safetensors")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    def refuses(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match=r"cannot write .*x\.safetensors: .*No space left.*free some space"):
        save_tensors(tmp_path / "x.safetensors", TENSORS, refuses)
    assert not list(tmp_path.iterdir())
