"""Extended XYZ, the dialect in which campaigns exchange frames: written here, read strictly.

Text always stands in quotes, so that no reader takes a word for a truth value; nothing read is
guessed or evaluated: values stay text, columns become numbers, and errors name the line.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from core.errors import InputError, StructureError
from core.structures import Structure

SUFFIXES = (".extxyz", ".xyz")
MAX_COLUMNS = 200
_PAIR = re.compile(r'\s*([^\s="]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s"]\S*)))?(?=\s|$)')
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class XyzFrame:
    """One frame as it stands in the file.

    Attributes:
        line: of its comment, counted from 1. numbers: (N,) atomic numbers.
        info: key -> text of the comment; a key without a value is "T".
        columns: name -> (N, width) numbers.
    """

    line: int
    numbers: np.ndarray
    info: dict[str, str]
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.numbers)


def write(structure: Structure, info: dict[str, Any], columns: dict[str, np.ndarray]) -> str:
    """Return one frame; `columns` are (N,) or (N, width), positions among them as "pos"."""
    tables = [np.reshape(values, (len(structure), -1)) for values in columns.values()]
    kinds = [f"{name}:R:{t.shape[1]}" for name, t in zip(columns, tables, strict=True)]
    head = {"Properties": ":".join(["species:S:1", *kinds])}
    words = [f"{name}={value}" for name, value in head.items()]
    words.append(f'pbc="{" ".join("T" if p else "F" for p in structure.pbc)}"')
    if any(structure.pbc):
        words.insert(0, f'Lattice="{" ".join(f"{x:.10g}" for x in structure.cell.ravel())}"')
    words += [f"{name}={_value(value)}" for name, value in info.items()]
    rows = np.hstack(tables)
    lines = [
        f"{chemical_symbols[z]:2s} " + " ".join(f"{x:.10g}" for x in row)
        for z, row in zip(structure.numbers, rows, strict=True)
    ]
    return "\n".join([str(len(structure)), " ".join(words), *lines]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, str):
        clean = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
        return f'"{clean}"'
    if isinstance(value, bool):
        return "T" if value else "F"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def save(path: str | Path, frames: Iterable[str]) -> int:
    """Write frames (of `write`) to a file that is whole or absent; return how many.

    Raises:
        InputError: the file's suffix is not that of extended XYZ.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path.name}: campaigns are exported as extended XYZ; "
            f"give a name ending in {' or '.join(SUFFIXES)}."
        )
    part = path.with_name(path.name + ".part")
    count = 0
    with open(part, "w", encoding="utf-8") as file:
        for text in frames:
            file.write(text)
            count += 1
    part.replace(path)
    return count


def read(text: str) -> Iterator[XyzFrame]:
    """Read the frames of a file, one by one.

    Raises:
        StructureError: what is wrong, and in which line.
    """
    return stream(text.splitlines())


def stream(lines: Iterable[str]) -> Iterator[XyzFrame]:
    """Read frames from lines as they come, such as those of an open file.

    Raises:
        StructureError: what is wrong, and in which line.
    """
    given, at = iter(lines), 0
    for line in given:
        at += 1
        if not line.strip():
            continue
        count = _count(line.strip(), at)
        frame = list(itertools.islice(given, count + 1))
        if len(frame) <= count:
            raise StructureError(
                f"Line {at} announces {count} atoms, but {max(len(frame) - 1, 0)} lines are left; "
                "the file is cut off."
            )
        yield _frame(frame, at + 1)
        at += count + 1


def _count(text: str, line: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise StructureError(
            f"Line {line} is {text[:40]!r}, where the number of atoms of a frame is expected."
        )
    return int(text)


def _frame(lines: list[str], number: int) -> XyzFrame:
    """Read a comment and its atoms; `number` is the comment's line."""
    info = _info(lines[0], number)
    columns = _properties(info.pop("Properties", "species:S:1:pos:R:3"), number)
    width = columns[-1][1].stop
    rows = [line.split() for line in lines[1:]]
    for i, row in enumerate(rows, number + 1):
        if len(row) != width:
            raise StructureError(f"Line {i} has {len(row)} columns; Properties announces {width}.")
    symbols: dict[str, slice] = {name: where for name, where, text in columns if text}
    if "species" not in symbols:
        raise StructureError(f"Line {number}: Properties names no column species:S:1.")
    species = symbols["species"].start
    return XyzFrame(
        number,
        np.array([_element(row[species], i) for i, row in enumerate(rows, number + 1)]),
        info,
        {name: _numbers(rows, where, number) for name, where, text in columns if not text},
    )


def _info(comment: str, number: int) -> dict[str, str]:
    info, at = {}, 0
    comment = comment.strip()
    while at < len(comment):
        match = _PAIR.match(comment, at)
        if match is None:
            raise StructureError(
                f"Line {number} is not of the form key=value: {comment[at : at + 40]!r}."
            )
        key, quoted, plain = match.groups()
        info[key] = (
            _ESCAPED.sub(r"\1", quoted) if quoted is not None else "T" if plain is None else plain
        )
        at = match.end()
    return info


def _properties(text: str, number: int) -> list[tuple[str, slice, bool]]:
    """Return name, columns and whether it is text, of each entry of Properties."""
    words = text.split(":")
    found, at = [], 0
    for name, kind, width in zip(words[::3], words[1::3], words[2::3], strict=False):
        if kind not in ("S", "R", "I", "L") or not re.fullmatch(r"[0-9]{1,3}", width):
            break
        found.append((name, slice(at, at + int(width)), kind in "SL"))
        at += int(width)
    if len(words) != 3 * len(found) or not 0 < at <= MAX_COLUMNS:
        raise StructureError(
            f"Line {number}: Properties={text[:60]!r} is not a list of name:kind:width, such as "
            "species:S:1:pos:R:3:forces:R:3."
        )
    return found


def _element(symbol: str, line: int) -> int:
    if symbol not in atomic_numbers or symbol == "X":
        raise StructureError(f"Line {line}: {symbol[:20]!r} is not a chemical element.")
    return int(atomic_numbers[symbol])


def _numbers(rows: list[list[str]], where: slice, number: int) -> np.ndarray:
    try:
        return np.array([[float(word) for word in row[where]] for row in rows])
    except ValueError as error:
        raise StructureError(
            f"Below line {number} a number is expected where there is none: {error}."
        ) from error
