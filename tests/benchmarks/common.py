"""For every benchmark: machine and versions, cells that survive an interruption, tables."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "mace-torch", "ase", "tblite", "numpy", "flywise")


def context(**more: Any) -> dict[str, Any]:
    """Return machine, versions and whatever decides the figures (seeds, threads)."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        **more,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1) if found else platform.machine()


def arguments(about: str | None) -> argparse.ArgumentParser:
    """Return a parser of what benchmarks of many cells take: `only` and `list`.

    Args:
        about: the benchmark's docstring.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="Measure cells whose name has this pattern.")
    parser.add_argument("--list", action="store_true", help="Print what is there, measure nothing.")
    return parser


def named(*parts: Any) -> str:
    """Return the name of a cell."""
    return "-".join(str(part).replace(", ", "-").replace(" ", "-") for part in parts)


def measured(
    benchmark: str, wanted: Mapping[Key, Callable[[], dict[str, Any]]], options: argparse.Namespace
) -> dict[Key, dict[str, Any]]:
    """Return the cells that are there and those the options ask for, which are measured now.

    Args:
        wanted: what makes each cell, by its name or the parts of it.
    """
    found = {}
    for key, make in wanted.items():
        name = named(*key) if isinstance(key, tuple) else str(key)
        there = (RESULTS / benchmark / f"{name}.json").exists()
        if there or (re.search(options.only, name) and not options.list):
            found[key] = cell(benchmark, name, make)
            if not there:
                print(name, flush=True)
    return found


def cell(benchmark: str, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the stored result of one cell, or compute it and store it.

    Delete the file under `results` to measure again.
    """
    path = RESULTS / benchmark / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    result = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(path)
    return result


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_text(v) for v in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machine(about: dict[str, Any]) -> str:
    """Return the context as one line under a table."""
    return ", ".join(f"{k} {v}" for k, v in about.items()) + "\n"
