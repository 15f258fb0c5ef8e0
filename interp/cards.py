"""Cards: all that is known of one part of a model, in tables that have names, and one file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from interp.loading.files import replacing

if TYPE_CHECKING:
    from xarray import Dataset, DataTree
else:
    Dataset = DataTree = Any

Own = TypeVar("Own", bound="Card")


@dataclass(frozen=True, eq=False)
class Card:
    """Tables: `card["triggers"]` is one of them, and `print(card)` shows them all."""

    tables: DataTree
    of: ClassVar[str]  # what it is a card of
    parts: ClassVar[tuple[str, ...]]

    @classmethod
    def made(cls: type[Own], tables: Mapping[str, Dataset], attrs: Mapping[str, Any]) -> Own:
        """A card of these tables; `attrs` is said of all of them."""
        from xarray import DataTree

        tree = DataTree.from_dict({f"/{name}": tables[name] for name in cls.parts})
        tree.attrs = {"format": cls._format(), **attrs}
        return cls(tree)

    @classmethod
    def _format(cls) -> str:
        return f"interp {cls.of} card"

    @property
    def name(self) -> str:
        """As nodes are called: `L3H7`, `L2N17`."""
        return f"L{self.tables.attrs['layer']}{self.of[0].upper()}{self.tables.attrs[self.of]}"

    def __getitem__(self, part: str) -> Dataset:
        if part not in self.parts:
            raise KeyError(f"no table {part!r} on a {self.of}'s card; there are {list(self.parts)}")
        return self.tables[part].to_dataset()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all tables to one netCDF file, whole or not at all."""
        with replacing(Path(path)) as unfinished:
            self.tables.to_netcdf(unfinished, engine="h5netcdf")

    @classmethod
    def load(cls: type[Own], path: str | os.PathLike[str]) -> Own:
        """The card that `save` wrote."""
        from xarray import load_datatree

        try:
            tables = load_datatree(path, engine="h5netcdf")
        except OSError as error:
            if not Path(path).is_file():
                raise FileNotFoundError(f"no file {path}") from error
            raise ValueError(f"{path} is no complete netCDF file: {error}") from error
        if tables.attrs.get("format") != cls._format():
            raise ValueError(f"{path} holds no {cls.of}'s card: {dict(tables.attrs)!r:.80}")
        return cls(tables)


def rows(table: Dataset, *names: str) -> list[tuple[Any, ...]]:
    """Some columns of a table, row by row."""
    return list(zip(*(table[name].values.tolist() for name in names), strict=True))


def shown(token: str) -> str:
    """A text in one line."""
    return str(token).replace("\n", "⏎").replace("\t", "⇥")
