"""Pools of unlabelled structures, read one by one: files of any size, or a campaign's frames.

Extended XYZ is streamed. An ASE database is read row by row, without its attached data. HDF5 takes
the layout that ANI and SPICE share: groups with atomic numbers (N,) and coordinates (F, N, 3).
Files are foreign: nothing in them is evaluated, and every structure is checked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from core.campaign import extxyz
from core.campaign.labels import structure_of
from core.campaign.reader import CampaignReader
from core.campaign.store import DATABASE
from core.errors import InputError
from core.structures import Structure, check

NUMBERS = ("atomic_numbers", "species", "numbers")
COORDINATES = ("coordinates", "conformations", "positions")
"""Names of the datasets of an HDF5 group."""
LENGTHS = {"angstrom": 1.0, "å": 1.0, "a": 1.0, "bohr": 0.529177210903, "nanometer": 10.0}
"""Å for the units a dataset may say it is in."""
ACCEPTED = "extended XYZ (.extxyz, .xyz), an ASE database (.db), HDF5 (.h5, .hdf5), or a campaign"


def structures(path: Path) -> Iterator[Structure]:
    """Yield the structures of a pool that has to be acceptable as a whole.

    Raises:
        InputError: there is no such pool, or which of its structures cannot be taken, and why.
    """
    for place, given in enumerate(each(path)):
        if isinstance(given, InputError):
            raise InputError(f"{path.name}, structure {place}: {given}") from given
        yield given


def each(path: Path) -> Iterator[Structure | InputError]:
    """Yield the structures of a pool, in the order that gives them their numbers.

    In place of one that cannot be taken comes the reason.

    Raises:
        InputError: there is no such pool, or where the file itself is broken.
    """
    if (path / DATABASE).is_file():
        yield from _of_campaign(path)
        return
    suffix = path.suffix.lower()
    kinds = {".db": _of_database, ".h5": _of_hdf5, ".hdf5": _of_hdf5}
    kinds |= dict.fromkeys(extxyz.SUFFIXES, _of_xyz)
    if not path.is_file() or suffix not in kinds:
        raise InputError(f"{path} is no pool; accepted: {ACCEPTED}.")
    done = 0
    try:
        for given in kinds[suffix](path):
            yield given
            done += 1
    except (InputError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name}, structure {done}: {error}") from error


def _of_xyz(path: Path) -> Iterator[Structure | InputError]:
    with open(path, encoding="utf-8") as file:
        for frame in extxyz.stream(file):
            taken = _taken(partial(structure_of, frame))
            if isinstance(taken, InputError):
                taken = InputError(f"the frame at line {frame.line}: {taken}")
            yield taken


def _of_database(path: Path) -> Iterator[Structure | InputError]:
    import ase.db

    try:
        with ase.db.connect(str(path), type="db") as database:
            for row in database.select(include_data=False):
                a, b, c = (bool(periodic) for periodic in row.pbc)
                structure = Structure(
                    np.array(row.numbers, dtype=int), np.array(row.positions, dtype=float),
                    np.array(row.cell, dtype=float), (a, b, c), round(row.get("charge", 0)),
                )  # fmt: skip
                yield _taken(partial(check, structure))
    except sqlite3.DatabaseError as error:
        raise InputError(f"it is no ASE database ({error})") from error


def _of_hdf5(path: Path) -> Iterator[Structure | InputError]:
    import h5py

    with h5py.File(path, "r") as file:
        found: list[Any] = []

        def visit(_: str, item: Any) -> None:
            if isinstance(item, h5py.Group) and _dataset(item, NUMBERS) is not None:
                found.append(item)

        visit("/", file)
        file.visititems(visit)
        if not found:
            raise InputError(
                f"no group has {' or '.join(NUMBERS)}, with {' or '.join(COORDINATES)}"
            )
        for group in found:
            yield from _of_group(group)


def _of_group(group: Any) -> Iterator[Structure | InputError]:
    given, coordinates = _dataset(group, NUMBERS), _dataset(group, COORDINATES)
    if coordinates is None or coordinates.ndim != 3:
        raise InputError(f"group {group.name} has no coordinates (frames, atoms, 3)")
    unit = str(_text(coordinates.attrs.get("units", "angstrom"))).lower()
    if unit not in LENGTHS:
        raise InputError(f"group {group.name} is in {unit[:20]!r}; accepted: {', '.join(LENGTHS)}")
    numbers = np.asarray(given[:], dtype=int)
    for frame in coordinates:
        structure = Structure(numbers, LENGTHS[unit] * np.asarray(frame, dtype=float))
        yield _taken(partial(check, structure))


def _taken(made: Callable[[], Structure]) -> Structure | InputError:
    try:
        return made()
    except InputError as error:
        return error


def _dataset(group: Any, names: tuple[str, ...]) -> Any:
    return next((group[name] for name in names if name in group), None)


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _of_campaign(path: Path) -> Iterator[Structure]:
    """Yield the frames of trusted weights that were kept and have no label."""
    with CampaignReader(path) as reader:
        rows = reader.frames_since(0)
        labelled = {q.frame_id for q in reader.state().queue if q.status == "trained"}
        kept = (rows["rewound"] == 0) & (rows["kind"] != "untrusted")
        for i in rows["id"][kept].tolist():
            if i not in labelled:
                yield reader.frame(int(i)).of(reader.structure)
