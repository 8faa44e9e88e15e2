"""Reads the rows of a data set that `datasets` saved, without `datasets`, which takes half a second to import."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload


class ArrowRows(Sequence[dict[str, Any]]):
    """The rows of the folder of `Dataset.save_to_disk`. A row is read from the mapped file when it is needed."""

    def __init__(self, folder: Path, kept: Sequence[int] | None = None) -> None:
        """All rows, or those of some numbers in their order."""
        import pyarrow as arrow

        self.folder = folder
        files = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
        paths = [str(folder / file["filename"]) for file in files]
        self.table = arrow.concat_tables(arrow.ipc.open_stream(arrow.memory_map(path)).read_all() for path in paths)
        self.kept = range(len(self.table)) if kept is None else kept

    def __reduce__(self) -> tuple[object, ...]:
        # A loader's process maps the files itself.
        return ArrowRows, (self.folder, self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.table.slice(self.kept[index], 1).to_pylist()[0]

    def select(self, kept: Sequence[int]) -> "ArrowRows":
        """The rows of these numbers, in this order."""
        return ArrowRows(self.folder, [self.kept[number] for number in kept])
