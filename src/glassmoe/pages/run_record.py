"""What lies in a run directory that a reader wants to see: configuration, environment, metrics and measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glassmoe import config as configuration
from glassmoe.chess.board_results import BoardsResult, LayerBoards
from glassmoe.config import RunConfig
from glassmoe.data.domains import token_kind
from glassmoe.data.tokens import TEXT
from glassmoe.measure.perplexity import PerplexityResult
from glassmoe.measure.saved import SavedMeasure, is_of_run, read_measure
from glassmoe.training.checkpoint import latest_step
from glassmoe.training.records import Environment, read_environment
from glassmoe.training.tracking import MetricsLine, read_metrics


@dataclass(frozen=True)
class RunRecord:
    """A run directory."""

    path: Path
    """The directory."""
    name: str
    """Name that tells it from the other runs of a page."""
    config: RunConfig
    """Configuration."""
    environment: Environment
    """How the run was made."""
    lines: list[MetricsLine]
    """Lines of metrics.jsonl."""
    boards: BoardsResult | None
    """The measure `boards`; None before it was measured."""
    boards_file: SavedMeasure | None
    """What `boards` was measured on."""
    ppl: PerplexityResult | None
    """The measure `ppl`; None unless it was measured on the run as it is, on its own data."""

    @property
    def summary(self) -> str:
        """One sentence on the model and its training."""
        model = self.config.model
        games = "synthetic games" if self.environment.data == "synthetic" else "games"
        read = "tokens of text" if self.of_text else f"{self.config.data.tokens} of {games}"
        return (
            f"{model.ffn}, {model.layers} layers of width {model.width}, trained for {self.step:,} of "
            f"{self.config.train.steps:,} steps on {self.tokens / 1e6:.1f}M {read}"
        )

    @property
    def step(self) -> int:
        """Steps that the model was trained for: those of its newest checkpoint, which a run that was stopped writes
        between two lines of metrics."""
        return latest_step(self.path) or self.lines[-1].step

    @property
    def tokens(self) -> int:
        """Tokens that it was trained on."""
        return self.lines[-1].tokens * self.step // self.lines[-1].step

    @property
    def of_text(self) -> bool:
        """Whether the run reads text, and therefore has no boards to measure."""
        return self.config.data.tokens == TEXT

    @property
    def token(self) -> str:
        """What one token is called."""
        return "token" if self.of_text else token_kind(self.config.data.tokens).one

    @property
    def valid_loss(self) -> float | None:
        """Validation loss, in nats per token: of the measure `ppl`, or else the last of training."""
        losses = [line.valid_loss for line in self.lines if line.valid_loss is not None]
        if self.ppl is not None:
            return self.ppl.loss
        return losses[-1] if losses else None

    @property
    def best(self) -> LayerBoards | None:
        """The layer with the highest reconstruction."""
        return None if self.boards is None else self.boards.best

    @property
    def is_stale(self) -> bool:
        """Whether the run was trained further after its boards were measured."""
        return self.boards_file is not None and self.boards_file.step != self.step


def read_run(run: Path, name: str) -> RunRecord:
    """What lies in a run directory. ValueError for a path that is not a trained run."""
    missing = [file for file in ("config.yaml", "environment.json", "metrics.jsonl") if not (run / file).is_file()]
    if missing:
        raise ValueError(
            f"{run} is not a trained run: it has no {', '.join(missing)}; give a folder that `glassmoe train --out` "
            f"wrote"
        )
    lines = read_metrics(run / "metrics.jsonl")
    if not lines:
        raise ValueError(f"{run} has no line in metrics.jsonl yet; let it train for some steps first")
    config = configuration.load(run / "config.yaml")
    environment = read_environment(run)
    boards, ppl = read_measure(run, "boards"), read_measure(run, "ppl")
    return RunRecord(
        path=run,
        name=name,
        config=config,
        environment=environment,
        lines=lines,
        boards=None if boards is None else boards.result(BoardsResult),
        boards_file=boards,
        ppl=None if ppl is None or not is_of_run(ppl, run) else ppl.result(PerplexityResult),
    )


def distinct_runs(runs: str | Path | Sequence[str | Path]) -> list[Path]:
    """One or several runs as paths. ValueError for a run that is given twice."""
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("the same run is given twice; give each run once")
    return paths


def names_of(runs: Sequence[Path]) -> list[str]:
    """Directory names, with as many parents as it takes to tell the runs apart."""
    paths = [run.resolve() for run in runs]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
