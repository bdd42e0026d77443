"""Mutated structure, label and settings files: refused with a reason or read correctly.

Nothing but the file itself may be opened while it is read: an audit hook writes down every file,
process and network connection that Python opens.
"""

import contextlib
import io
import random
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule

from core import settings, structures, worker
from core.assets import asset
from core.campaign import exchange
from core.campaign.reader import CampaignReader
from core.errors import FlywiseError

QUICK, MANY = 400, 10_000
HOSTILE = [
    "nan", "inf", "-inf", "1e309", "1e-400", "-1", "0", "999999999", "100000000000000000000",
    "0x10", "1_000", "٣", "\N{SNOWMAN}", "\0", "\x1b[31m", "'", '"', "\\", "%s%n", "{0.__class__}",
    "../../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x",
    "__import__('os').system('touch owned')", "_JSON [1, 2]", "!!python/object/apply:os.system",
    'Lattice="1 0 0 0 1 0 0 0 1"', 'Lattice="0 0 0 0 0 0 0 0 0"', 'pbc="T T T"', "charge=1e99",
    "Properties=species:S:1:pos:R:999999999", "Properties=pos:R:3", "query=-1", "query=1e9",
    "energy=", "[", "]]", "=", "#", "\n\n", "\r", "\t" * 50, "A" * 5000, "steps = 10e99",
    "[structure]", 'file = "/etc/passwd"', "data_", "loop_", "_cell_length_a 1e300",
    "_symmetry_space_group_name_H-M 'nonsense'", "END", "ATOM", "HETATM", "M  END", "V3000",
]  # fmt: skip


def mutated(text: str, rng: random.Random) -> bytes:
    """Return a file with one to four things wrong with it."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        words = lines[at].split(" ")
        k = rng.randrange(len(words))
        kind = rng.randrange(9)
        if kind == 0:
            words[k] = rng.choice(HOSTILE)
        elif kind == 1:
            words.insert(k, rng.choice(HOSTILE))
        elif kind == 2:
            words.pop(k)
        elif kind == 3:
            words[k] = words[k][: rng.randint(0, len(words[k]))]
        lines[at] = " ".join(words)
        if kind == 4:
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 5:
            lines.insert(at, lines[other])
        elif kind == 6:
            lines.pop(at)
        elif kind == 7:
            lines = lines[: at + 1]
        text = "\n".join(lines)
        if kind == 8:
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(HOSTILE) + text[place + rng.randint(0, 9) :]
        text = text or " "
    data = bytearray(text.encode("utf-8", "replace"))
    if rng.random() < 0.15:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


PACKAGES = sysconfig.get_path("purelib")
"""ASE looks space groups up in a file of its own."""


class Opened:
    """What Python opened, started or connected to while it watched, other than its own files."""

    def __init__(self) -> None:
        self.watching, self.seen = False, Counter[str]()
        sys.addaudithook(self._hear)  # for as long as the process lives: none can be removed

    def _hear(self, event: str, args: tuple) -> None:
        if not self.watching:
            return
        if event == "open":
            name = str(args[0])
            own = name.startswith(PACKAGES) or name.endswith((".py", ".pyc", ".so", "__pycache__"))
            if not own:
                self.seen[name] += 1
        elif event.startswith(("subprocess", "socket", "os.system", "os.exec", "pickle", "ctypes")):
            self.seen[event] += 1

    @contextlib.contextmanager
    def watch(self) -> Iterator[Counter[str]]:
        self.seen.clear()
        self.watching = True
        try:
            yield self.seen
        finally:
            self.watching = False


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


def written(atoms, fmt: str) -> str:
    file = io.StringIO() if fmt != "cif" else io.BytesIO()
    ase.io.write(file, atoms, format=fmt)
    text = file.getvalue()
    return text if isinstance(text, str) else text.decode()


def structure_files() -> list[tuple[str, str]]:
    """One good file of each kind that is accepted."""
    water, silicon = molecule("H2O"), bulk("Si", cubic=True)
    sdf = (
        "\n  made by hand\n\n  3  2  0  0  0  0            999 V2000\n"
        "    0.0000    0.0000    0.1193 O   0  0\n    0.0000    0.7632   -0.4770 H   0  0\n"
        "    0.0000   -0.7632   -0.4770 H   0  0\n  1  2  1  0\n  1  3  1  0\nM  END\n$$$$\n"
    )
    return [
        ("water.xyz", written(water, "xyz")),
        ("silicon.extxyz", written(silicon, "extxyz")),
        ("silicon.cif", written(silicon, "cif")),
        ("water.pdb", written(water, "proteindatabank")),
        ("silicon.gen", written(silicon, "gen")),
        ("silicon.vasp", written(silicon, "vasp")),
        ("silicon.poscar", written(silicon, "vasp")),
        ("water.sdf", sdf),
        ("water.mol", sdf),
    ]


def read_structure(name: str, data: bytes) -> None:
    structure = structures.from_bytes(data, name)
    assert 0 < len(structure) <= structures.MAX_ATOMS and np.isfinite(structure.positions).all()
    assert structure.positions.shape == (len(structure), 3) and np.isfinite(structure.cell).all()
    assert structures.check(structure) is structure


def check(read: Callable[[], None], opened: Opened, allowed: tuple[str, ...] = ()) -> bool:
    """Return True if the file was read; it may only fail with a reason for people."""
    with opened.watch() as seen:
        try:
            read()
            good = True
        except FlywiseError as error:
            assert 10 < len(str(error)) < 6000
            good = False
    assert set(seen) <= set(allowed), f"it opened {dict(seen)}"
    return good


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "count", [QUICK, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_mutated_structure_files(count, opened):
    good = structure_files()
    for name, text in good:
        read_structure(name, text.encode())
    rng = random.Random(1)
    read = 0
    for number in range(count):
        name, text = good[number % len(good)]
        data = mutated(text, rng)
        read += check(lambda name=name, data=data: read_structure(name, data), opened)
    assert 0.02 * count < read < 0.9 * count  # both ways out are taken


@pytest.fixture(scope="module")
def labels(tmp_path_factory, argon):
    """A campaign with three waiting frames, and a file of good labels for them."""
    folder = tmp_path_factory.mktemp("hostile")
    directory = folder / "campaign"
    worker.prepare(directory, argon(folder).with_value("labelling.mode", "approve"))
    worker.run_inline(directory)
    with CampaignReader(directory) as reader:
        frames = [(q, reader.frame(q.frame_id)) for q in reader.state().queue]
        exchange.export_frames(reader, folder / "out.extxyz")
    text = (folder / "out.extxyz").read_text().split("\n")
    n, out, line = len(frames[0][1].positions), [], 0
    for _, frame in frames:
        out += [text[line], text[line + 1].replace("pos:R:3", "pos:R:3:forces:R:3")]
        out[-1] += f" energy={frame.energy + 0.01:.6f}"
        forces = frame.forces + 0.001 * np.sin(np.arange(3 * n)).reshape(n, 3)
        forces -= forces.mean(axis=0)
        out += [
            f"{row} {' '.join(f'{x:.8f}' for x in force)}"
            for row, force in zip(text[line + 2 : line + 2 + n], forces, strict=True)
        ]
        line += n + 2
    return directory, "\n".join(out) + "\n"


@pytest.mark.parametrize(
    "count", [QUICK, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_mutated_label_files(count, opened, labels):
    directory, text = labels
    with CampaignReader(directory) as reader:
        assert len(exchange.read_labels(reader, text.encode(), "labels.extxyz").ids) == 3
        stored = {q.id: reader.frame(q.frame_id) for q in reader.state().queue}

        def read(data: bytes) -> None:
            offer = exchange.read_labels(reader, data, "labels.extxyz")
            for query_id, label in zip(offer.ids, offer.labels, strict=True):
                assert np.isfinite(label.energy) and np.isfinite(label.forces).all()
                assert np.abs(label.energy - stored[query_id].energy) < 20
                assert np.allclose(label.structure.positions, stored[query_id].positions)

        rng = random.Random(2)
        taken = 0
        for _ in range(count):
            data = mutated(text, rng)
            taken += check(lambda data=data: read(data), opened)
        assert 0.01 * count < taken < 0.9 * count
        assert reader.labels() == []


@pytest.mark.parametrize(
    "count", [QUICK, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_mutated_settings_files(count, opened, tmp_path):
    good = [
        asset("examples/ethanol.toml").read_text(),
        settings.load(asset("examples/ethanol.toml")).to_toml(),
    ]
    file = tmp_path / "settings.toml"
    rng = random.Random(3)
    read = 0

    def load() -> None:
        found = settings.load(file)
        assert settings.from_json(found.to_json()) == found

    for number in range(count):
        file.write_bytes(mutated(good[number % 2], rng))
        read += check(load, opened, allowed=(str(file),))
    assert 0.02 * count < read < 0.95 * count
