"""Bars and lines: in a terminal, in a notebook, and in a file."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import tqdm as tqdm_package

from glassmoe.console import bar, in_notebook


def kernel(monkeypatch: pytest.MonkeyPatch, config: dict[str, object]) -> None:
    """Makes this process look like one with IPython."""
    module = ModuleType("IPython")
    module.get_ipython = lambda: SimpleNamespace(config=config)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)


def test_a_notebook_gets_the_bar_of_tqdm_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_notebook()
    assert bar(3, "work", "step").disable
    kernel(monkeypatch, {})  # IPython in a terminal
    assert not in_notebook()
    kernel(monkeypatch, {"IPKernelApp": {}})
    auto = ModuleType("tqdm.auto")
    auto.tqdm = lambda **settings: settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    monkeypatch.setattr(tqdm_package, "auto", auto, raising=False)
    made = bar(3, "work", "step")
    assert in_notebook() and not made["disable"] and made["total"] == 3
    assert bar(3, "work", "step", show=False)["disable"]
