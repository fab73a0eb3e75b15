"""From chunks of files to a corpus writer, with counts of what was skipped, in the order of the files however many
processes read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .parallel import ordered_map
from .sources import Chunk, InputFile
from .writer import CorpusWriter, PackedSequences

_EXAMPLES = 3


class ChunkResult(NamedTuple):
    """The usable sequences of a chunk. `numbers`: their places in the chunk; `skipped`: (place, reason, detail) of the
    others; `repaired`: places of those whose bytes had to be repaired; `seen`: how many sequences the chunk has."""

    file: int
    sequences: PackedSequences
    numbers: list[int]
    skipped: list[tuple[int, str, str]]
    seen: int
    repaired: Sequence[int] = ()


class Tally:
    """Counts of what was skipped, with the first examples of each reason. `unit`: what one sequence is called."""

    def __init__(self, names: Sequence[str], unit: str) -> None:
        self.names = names
        self.unit = unit
        self.skipped: dict[str, dict[str, Any]] = {}
        self.total = 0
        self.repaired = 0
        self._seen = [0] * len(names)

    def take(self, result: ChunkResult, room: int | None) -> PackedSequences:
        """The sequences of a result, at most `room`; what was skipped after the last one is not counted."""
        packed, end = result.sequences, result.seen
        if room is not None and len(result.numbers) >= room:
            end = result.numbers[room - 1] + 1
            packed = packed.first(room)
        for number, reason, detail in result.skipped:
            if number < end:
                self._count(reason, self.names[result.file], self._seen[result.file] + number + 1, detail)
        self.repaired += sum(number < end for number in result.repaired)
        self._seen[result.file] += result.seen
        return packed

    def breaks(self, sources: Sequence[InputFile]) -> None:
        for source in sources:
            if source.error:
                self._count("unreadable stream", source.name, self._seen[source.number] + 1, source.error)

    def summary(self) -> str:
        if not self.skipped:
            return "the input is empty"
        first = next(iter(self.skipped.values()))["examples"][0]
        counts = ", ".join(f"{entry['count']} {reason}" for reason, entry in self.skipped.items())
        return f"skipped {counts} (first: {self.unit} {first[self.unit]} of {first['file']}: {first['detail']})"

    def _count(self, reason: str, file: str, number: int, detail: str) -> None:
        entry = self.skipped.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += 1
        self.total += 1
        if len(entry["examples"]) < _EXAMPLES:
            entry["examples"].append({"file": file, self.unit: number, "detail": detail})


def gather(
    writer: CorpusWriter,
    tally: Tally,
    sources: Sequence[InputFile],
    read: Callable[[Chunk], ChunkResult],
    shown: Any,
    workers: int | None,
    most: int | None,
) -> dict[str, Any]:
    """Reads all chunks of `sources` over processes and writes what can be used, at most `most` sequences. Returns
    `inputs`, the entries of the manifest about the files that were read. `shown`: the progress bar."""
    chunks = (chunk for source in sources for chunk in source.chunks())
    results = ordered_map(read, chunks, workers)
    finished = sources
    for result in results:
        room = None if most is None else most - writer.count
        writer.add(tally.take(result, room))
        shown.set_postfix({writer.kind.unit: writer.count, "skipped": tally.total}, refresh=False)
        if writer.count == most:
            # How far reading has run ahead depends on the workers; the manifest must not.
            finished = sources[: result.file]
            break
    results.close()
    tally.breaks(finished)
    return {"inputs": [source.about(source in finished) for source in sources[: len(finished) + 1]]}
