"""Screening a pool: every format, the cascade, an interruption, and what is refused."""

import ase.db
import h5py
import numpy as np
import pytest

from core.acquisition.features import Recipe
from core.campaign import extxyz, pool
from core.campaign import screen as module
from core.campaign.screen import Blocks, Order, Rows, screen
from core.errors import InputError, ModelError
from core.structures import Structure, from_name


@pytest.fixture
def structures(rng):
    """Ethanol and water, shaken; the last ethanol has a stretched O-H bond."""
    found = []
    for k in range(12):
        start = from_name("CH3CH2OH" if k % 3 else "H2O")
        found.append(start.moved(start.positions + 0.03 * rng.standard_normal((len(start), 3))))
    torn = found[-1].positions.copy()
    torn[3] += 0.8 * (torn[3] - torn[2]) / np.linalg.norm(torn[3] - torn[2])
    return [*found[:-1], found[-1].moved(torn)]


def write(path, structures):
    extxyz.save(path, (extxyz.write(s, {}, {"pos": s.positions}) for s in structures))
    return path


def same(found, given):
    assert len(found) == len(given)
    for a, b in zip(found, given, strict=True):
        assert (a.numbers == b.numbers).all()
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-6)


def test_the_same_structures_from_every_format(structures, tmp_path):
    same(list(pool.structures(write(tmp_path / "pool.extxyz", structures))), structures)
    with ase.db.connect(str(tmp_path / "pool.db")) as database:
        for s in structures:
            database.write(s.to_atoms())
    same(list(pool.structures(tmp_path / "pool.db")), structures)
    with h5py.File(tmp_path / "pool.h5", "w") as file:
        for name, n in (("water", 3), ("ethanol", 9)):
            alike = [s.positions for s in structures if len(s) == n]
            group = file.create_group(f"molecules/{name}")
            group["atomic_numbers"] = next(s.numbers for s in structures if len(s) == n)
            group["conformations"] = np.array(alike) / 0.529177210903
            group["conformations"].attrs["units"] = "bohr"
    by_size = sorted(structures, key=lambda s: -len(s))
    same(list(pool.structures(tmp_path / "pool.h5")), by_size)


URANIUM = Structure(np.array([92]), np.zeros((1, 3)), spin=4)


def order(tmp_path, structures, kernel="joint", **given):
    path = write(tmp_path / "pool.extxyz", structures)
    given = {"n": 3, "shortlist": 6} | given
    return Order(path, out=tmp_path / "chosen.extxyz", recipe=Recipe(kernel), **given)


@pytest.mark.parametrize("kernel", ["activation", "ntk", "force-ntk", "joint"])
def test_the_torn_molecule_is_chosen_and_reasons_are_given(structures, tmp_path, kernel):
    train = write(tmp_path / "train.extxyz", structures[:9])
    found = screen(order(tmp_path, structures, kernel=kernel, train=train))
    chosen = [c["index"] for c in found["choices"]]
    assert 11 in chosen and len(set(chosen)) == 3 and found["pool"] == 12
    torn = found["choices"][chosen.index(11)]
    assert torn["novelty"] > 2 and torn["reason"] in (
        "forces", "energy", "its atoms' surroundings",
    )  # fmt: skip
    same(list(pool.structures(tmp_path / "chosen.extxyz")), [structures[i] for i in chosen])
    frame = next(extxyz.read((tmp_path / "chosen.extxyz").read_text()))
    assert int(frame.info["pool_index"]) == chosen[0] and frame.info["reason"]
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("kernel", ["activation", "joint"])
def test_every_way_to_choose(structures, tmp_path, kernel):
    train = write(tmp_path / "train.extxyz", structures[:9])
    chosen = {
        select: [
            c["index"]
            for c in screen(order(tmp_path, structures, kernel, train=train, select=select))[
                "choices"
            ]
        ]
        for select in module.SELECT
    }
    assert all(len(set(found)) == 3 for found in chosen.values())
    assert all(11 in chosen[s] for s in ("determinant", "lcmd", "farthest", "top"))
    assert chosen["top"][0] == 11
    again = screen(order(tmp_path, structures, kernel, train=train, select="random"))["choices"]
    assert [c["index"] for c in again] == chosen["random"]


@pytest.mark.parametrize("kernel", ["activation", "joint"])
@pytest.mark.parametrize(("n", "count"), [(0, 0), (1, 1), (99, 12)])
def test_budgets(structures, tmp_path, kernel, n, count):
    found = screen(order(tmp_path, structures, kernel=kernel, n=n, shortlist=0))
    assert sorted({c["index"] for c in found["choices"]}) == sorted(
        c["index"] for c in found["choices"]
    )
    assert found["chosen"] == count


@pytest.mark.parametrize("stage", ["activations", "joint"])
def test_interrupted_it_goes_on_to_the_same_choice(structures, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(module, "BATCH", 4)
    given = order(tmp_path, structures)
    whole = screen(given)["choices"]
    told: list[tuple[str, int]] = []

    def stop(at, done, seconds):
        if at == stage and done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        screen(given, stop)
    again = screen(given, lambda at, done, seconds: told.append((at, done)))
    assert [c["index"] for c in again["choices"]] == [c["index"] for c in whole]
    assert min(done for at, done in told if at == stage) > 3
    if stage == "joint":
        assert all(at == "joint" for at, _ in told)


def test_another_pool_begins_anew(structures, tmp_path):
    given = order(tmp_path, structures)

    def stop(at, done, seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        screen(given, stop)
    write(given.pool, structures[:5])
    assert screen(given)["pool"] == 5


def test_a_row_written_by_half_is_computed_again(tmp_path):
    rows = Rows(tmp_path / "rows", 3)
    rows.extend([np.ones((2, 3))], lambda n: None)
    with open(tmp_path / "rows", "ab") as file:
        file.write(b"12345")
    again = Rows(tmp_path / "rows", 3)
    assert len(again) == 2 and (again.table() == 1).all()
    again.cut(1)
    assert len(again) == 1


def test_blocks_of_rows_are_read_from_the_file(tmp_path):
    rows, given = Rows(tmp_path / "rows", 3), np.arange(15.0).reshape(5, 3)
    rows.extend([given], lambda n: None)
    blocks = Blocks(rows, np.array([0, 2, 2, 5]))
    assert len(blocks) == 3
    np.testing.assert_equal(list(blocks), [given[:2], given[:0], given[2:]])


@pytest.mark.parametrize("kernel", ["activation", "joint"])
def test_structures_that_cannot_be_taken_are_left_out_and_named(
    structures, tmp_path, monkeypatch, kernel
):
    """They change nothing of what is chosen, also where the screening is interrupted."""
    monkeypatch.setattr(module, "BATCH", 4)
    clean = screen(order(tmp_path, structures, kernel))
    assert clean["left_out"] == {}
    overlapping = structures[1].moved(structures[1].positions * 0.2)
    mixed = [overlapping, *structures[:5], URANIUM, *structures[5:], overlapping]
    given = order(tmp_path, mixed, kernel)

    def stop(at, done, seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        screen(given, stop)
    found = screen(given)
    assert list(found["left_out"]) == [0, 6, 14] and found["pool"] == 12
    assert "overlap" in found["left_out"][0] and "does not know U" in found["left_out"][6]
    places = [i for i in range(len(mixed)) if i not in found["left_out"]]
    assert [c["index"] for c in found["choices"]] == [places[c["index"]] for c in clean["choices"]]
    same(
        list(pool.structures(given.out)), [mixed[c["index"]] for c in found["choices"]],
    )  # fmt: skip
    with pytest.raises(InputError, match="pool.extxyz, structure 0: the frame at line 2: .*overla"):
        list(pool.structures(given.pool))
    with pytest.raises(InputError, match=r"None of the 2 structures of pool\.extxyz can be taken"):
        screen(order(tmp_path, [overlapping, URANIUM], kernel))


def test_what_is_refused_says_where(structures, tmp_path):
    with pytest.raises(InputError, match="There is no pool"):
        screen(Order(tmp_path / "none.extxyz", 1, tmp_path / "o.extxyz"))
    (tmp_path / "pool.txt").write_text("x")
    with pytest.raises(InputError, match="accepted: extended XYZ"):
        list(pool.structures(tmp_path / "pool.txt"))
    cut = write(tmp_path / "cut.extxyz", structures)
    cut.write_text(cut.read_text()[:-200])
    with pytest.raises(InputError, match=r"cut\.extxyz, structure 11: .*(cut off|columns|number)"):
        list(pool.structures(cut))
    with pytest.raises(InputError, match="--kernel 'x'"):
        screen(order(tmp_path, structures, kernel="x"))
    with pytest.raises(InputError, match="--select 'y' is not known; accepted: reduction"):
        screen(order(tmp_path, structures, select="y"))
    with pytest.raises(InputError, match=r"ending in \.extxyz"):
        screen(Order(tmp_path / "pool.extxyz", 1, tmp_path / "out.csv"))
    given = order(tmp_path, structures, train=write(tmp_path / "train.extxyz", [URANIUM]))
    with pytest.raises(ModelError, match="does not know U"):
        screen(given)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="no group has atomic_numbers"):
        list(pool.structures(tmp_path / "bad.h5"))
    (tmp_path / "bad.db").write_bytes(b"not a database at all" * 10)
    with pytest.raises(InputError, match="bad.db"):
        list(pool.structures(tmp_path / "bad.db"))


def test_the_frames_of_a_campaign_are_a_pool(finished):
    found = list(pool.structures(finished))
    assert found and {s.formula for s in found} == {found[0].formula}
