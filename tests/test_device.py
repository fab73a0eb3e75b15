"""Which device a process computes on."""

import platform
import re
from pathlib import Path

import pytest
import torch

import forked
import glassmoe
from glassmoe.coders import fit as fitting
from glassmoe.device import pick_device
from glassmoe.model import GlassConfig, GlassForCausalLM, subject


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_process_of_torchrun_takes_the_gpu_of_its_local_rank(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device(name) == torch.device("cuda") and chosen == []
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device(name) == torch.device("cuda") and chosen == [3]
    assert pick_device("cpu") == torch.device("cpu") and chosen == [3]


FAULTS = """
import ctypes
import resource
import torch
from glassmoe.device import pick_device
pick_device("cpu")
if ctypes.CDLL(None).mallopt(-3, 1 << 30):  # what glibc of earlier versions refuses
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(12 << 20)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc than that of glibc")
def test_memory_of_large_tensors_is_kept() -> None:
    """Tensors of 48 MB, which have 12,288 pages."""
    faults = forked.run([], program=FAULTS, check=True).stdout.split()
    assert all(int(count) < 100 for count in faults[1:])


def test_what_loads_and_fits_chooses_by_that_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other module reads the local rank or names a GPU, and models, coders and fits come to their device by it."""
    package = Path(glassmoe.__file__).parent
    named = re.compile(r"LOCAL_RANK|set_device|torch\.device\(\"cuda|\.cuda\(\)")
    found = {str(p.relative_to(package)) for p in package.rglob("*.py") if named.search(p.read_text(encoding="utf-8"))}
    assert found == {"device.py", "training/distributed.py"}  # the latter asks for the backend of messages alone
    for module in ("model/subject.py", "coders/files.py", "coders/fit.py", "training/language.py"):
        assert "pick_device(" in (package / module).read_text(encoding="utf-8"), module
    asked: list[str] = []

    def note(name: str = "auto") -> torch.device:
        asked.append(name)
        return pick_device("cpu")

    shape = {"width": 16, "layers": 1, "heads": 2, "active_width": 32, "context": 24}
    GlassForCausalLM(GlassConfig(ffn="gelu", **shape)).save_pretrained(tmp_path / "run")
    monkeypatch.setattr(subject, "pick_device", note)
    subject.load_subject(str(tmp_path / "run"))
    assert asked == ["auto"] and fitting.pick_device is pick_device
