"""Reads the rows of a data set that `datasets` saved, without `datasets`, which takes half a second to import."""

import bisect
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload


class ArrowRows(Sequence[dict[str, Any]]):
    """The rows of the folder of `Dataset.save_to_disk`. A row is read from the mapped file when it is needed."""

    def __init__(self, folder: Path, kept: Sequence[int] | None = None) -> None:
        """All rows, or those of some numbers in their order."""
        from pyarrow import ipc, memory_map

        self.folder, self.kept = folder, kept
        files = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
        streams = (ipc.open_stream(memory_map(str(folder / file["filename"]))) for file in files)
        batches = [batch for stream in streams for batch in stream]
        self.columns = [dict(zip(batch.schema.names, batch.columns, strict=True)) for batch in batches]
        self.ends = list(itertools.accumulate(len(batch) for batch in batches))

    def __reduce__(self) -> tuple[object, ...]:
        # A loader's process maps the files itself.
        return ArrowRows, (self.folder, self.kept)

    def __len__(self) -> int:
        if self.kept is not None:
            return len(self.kept)
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = index if self.kept is None else self.kept[index]
        batch = bisect.bisect_right(self.ends, number)
        place = number - (self.ends[batch - 1] if batch else 0)
        return {name: column[place].as_py() for name, column in self.columns[batch].items()}

    def select(self, kept: Sequence[int]) -> "ArrowRows":
        """The rows of these numbers, in this order."""
        return ArrowRows(self.folder, kept if self.kept is None else [self.kept[number] for number in kept])
