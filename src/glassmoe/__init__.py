"""glassmoe: language models that can be read from the inside.

The names in `__all__` are the public API; everything else may change. They are imported when they are first used, so
that `import glassmoe` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.coders import decompose, export, import_coder
    from .api.features import explain, explore, merge, report
    from .api.measuring import (
        evaluate,
        evaluate_board_probes,
        evaluate_boards,
        evaluate_fidelity,
        evaluate_legal_moves,
        evaluate_ppl,
        probe,
        steer,
    )
    from .api.models import load
    from .api.papers import reproduce
    from .api.quickstart import quickstart_llm
    from .api.runs import generate, prepare_chess, prepare_text, quickstart, train, upcycle
    from .api.tracing import trace
    from .coders.kinds import CODERS
    from .config import RunConfig
    from .explaining.judges import JUDGES
    from .inspect.model import Model
    from .layers.features import Features, FeedForward
    from .layers.routers import ROUTERS
    from .model.feed_forwards import FEED_FORWARD
    from .papers.moex.suites import ROWS
    from .results import Result
    from .tracing.graph import Graph

__version__ = "0.1.0"

_HOMES = {
    "api.coders": ("decompose", "export", "import_coder"),
    "api.features": ("explain", "explore", "merge", "report"),
    "api.measuring": (
        *("evaluate", "evaluate_board_probes", "evaluate_boards", "evaluate_fidelity", "evaluate_legal_moves"),
        *("evaluate_ppl", "probe", "steer"),
    ),
    "api.models": ("load",),
    "api.papers": ("reproduce",),
    "api.quickstart": ("quickstart_llm",),
    "api.runs": ("generate", "prepare_chess", "prepare_text", "quickstart", "train", "upcycle"),
    "api.tracing": ("trace",),
    "coders.kinds": ("CODERS",),
    "config": ("RunConfig",),
    "explaining.judges": ("JUDGES",),
    "inspect.model": ("Model",),
    "layers.features": ("Features", "FeedForward"),
    "layers.routers": ("ROUTERS",),
    "model.feed_forwards": ("FEED_FORWARD",),
    "papers.moex.suites": ("ROWS",),
    "results": ("Result",),
    "tracing.graph": ("Graph",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CODERS",
    "FEED_FORWARD",
    "JUDGES",
    "ROUTERS",
    "ROWS",
    "Features",
    "FeedForward",
    "Graph",
    "Model",
    "Result",
    "RunConfig",
    "__version__",
    "decompose",
    "evaluate",
    "evaluate_board_probes",
    "evaluate_boards",
    "evaluate_fidelity",
    "evaluate_legal_moves",
    "evaluate_ppl",
    "explain",
    "explore",
    "export",
    "generate",
    "import_coder",
    "load",
    "merge",
    "prepare_chess",
    "prepare_text",
    "probe",
    "quickstart",
    "quickstart_llm",
    "report",
    "reproduce",
    "steer",
    "trace",
    "train",
    "upcycle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'glassmoe' has no attribute {name!r}")
    value = getattr(import_module(f"glassmoe.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
