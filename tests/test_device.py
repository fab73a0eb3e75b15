"""Which device a process computes on."""

import re
from pathlib import Path

import pytest
import torch

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
