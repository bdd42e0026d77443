"""Frames out and labels back in, through a file that ASE writes, as people do it."""

import io
import pickle
import shutil

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from core import worker
from core.campaign import events as ev
from core.campaign import exchange, labels, store
from core.campaign.labels import Declared
from core.campaign.reader import CampaignReader, Commander
from core.campaign.runner import Runner
from core.errors import InputError, LabelError
from core.reference import make as make_reference
from core.structures import from_atoms
from core.units import KCAL_PER_MOL

TEACHER = "teacher:lennard-jones:0.0115:3.45"


@pytest.fixture(scope="module")
def original(tmp_path_factory, argon):
    """A campaign whose three first frames wait for a decision; do not change it."""
    folder = tmp_path_factory.mktemp("waiting")
    directory = folder / "campaign"
    worker.prepare(directory, argon(folder).with_value("labelling.mode", "approve"))
    assert worker.run_inline(directory).ids("waiting") == (1, 2, 3)
    return directory


@pytest.fixture
def waiting(original, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(original, tmp_path / "campaign")


@pytest.fixture
def reader(original):
    with CampaignReader(original) as opened:
        yield opened


def answers(reader, tmp_path, change=None, chosen="waiting") -> bytes:
    """The exported frames with the teacher's labels, each changed by `change(atoms, number)`."""
    exchange.export_frames(reader, tmp_path / "out.extxyz", chosen)
    teacher, file = make_reference(reader.settings.labelling.reference), io.StringIO()
    for number, atoms in enumerate(ase.io.read(tmp_path / "out.extxyz", ":"), 1):
        label = teacher.compute(from_atoms(atoms))
        found = {"energy": label.energy, "forces": label.forces.copy()}
        if label.stress is not None:
            found["stress"] = full_3x3_to_voigt_6_stress(label.stress)
        atoms.calc = SinglePointCalculator(atoms, **found)
        if change is not None:
            change(atoms, number)
        ase.io.write(file, atoms, format="extxyz")
    return file.getvalue().encode()


def other_code(atoms, number):
    """Differ as another program would: the model has learned the teacher itself exactly."""
    atoms.calc.results["energy"] += 1e-4


def test_labels_computed_elsewhere_begin_trust(waiting, tmp_path):
    with CampaignReader(waiting) as reader:
        offer = exchange.read_labels(reader, answers(reader, tmp_path), "back.extxyz")
        commander = Commander(waiting)
        number = exchange.hand_over(commander, offer, "Ada")
        assert reader.command(number).outcome is None and offer.ids == (1, 2, 3)
        state = worker.run_inline(waiting, until=lambda state: state.trusted)
        assert reader.command(number).outcome == "done"
        rows = reader.labels()
        (event,) = reader.events_of(ev.ImportLabels)
        commander.close()
    assert state.trusted and not list((waiting / "labels").glob("*.npz"))
    assert (event.who, event.source, event.ids) == ("Ada", "back.extxyz", (1, 2, 3))
    query = state.query(2)
    assert (query.status, query.by_hand, query.decided_by) == ("trained", True, "Ada")
    for row, label in zip(rows, offer.labels, strict=True):
        assert row.energy == pytest.approx(label.energy) and row.wall_s == 0.0
        np.testing.assert_allclose(row.forces, label.forces)


def test_a_rejected_frame_is_scored_and_learned_after_all(waiting, tmp_path):
    commander = Commander(waiting)
    commander.post(ev.Approve(ids=(1, 2, 3)))
    commander.post(ev.ChangeSetting(path="trust.energy_tolerance", value=1e-5))
    state = worker.run_inline(waiting)
    assert state.trusted and state.ids("waiting") == (4,)
    commander.post(ev.Reject(ids=(4,)))
    worker.run_inline(waiting, until=lambda state: state.query(4).status == "rejected")
    with CampaignReader(waiting) as reader:
        data = answers(reader, tmp_path, other_code, chosen="flagged")
        offer = exchange.read_labels(reader, data, "x.xyz")
        assert 4 in offer.ids
        exchange.hand_over(commander, offer, "Ada")
        state = worker.run_inline(waiting)
        row = reader.labels()[3]
    assert state.query(4).status == "trained" and state.query(4).by_hand
    assert row.calibration is not None and row.z is not None and row.learned == 2


def test_an_export_holds_what_is_needed_to_know_it_again(reader, tmp_path):
    assert exchange.export_frames(reader, tmp_path / "out.extxyz") == 3
    atoms = ase.io.read(tmp_path / "out.extxyz", 1)
    query = reader.state().query(2)
    assert atoms.info["campaign"] == reader.id and atoms.info["query"] == 2
    assert atoms.info["structure"] == query.key and atoms.info["energy_unit"] == "eV"
    assert atoms.info["fingerprint"] == make_reference(TEACHER).fingerprint
    np.testing.assert_allclose(atoms.positions, reader.frame(query.frame_id).positions, atol=1e-8)


def test_nothing_to_label_is_said(finished, tmp_path):
    with CampaignReader(finished) as reader, pytest.raises(InputError, match="nothing to label"):
        exchange.export_frames(reader, tmp_path / "out.extxyz")


def drop(*names):
    def change(atoms, number):
        for name in names:
            atoms.info.pop(name, None)
            atoms.calc.results.pop(name, None)

    return change


def say(**info):
    return lambda atoms, number: atoms.info.update(info)


def results(energy=lambda e: e, forces=lambda f: f):
    def change(atoms, number):
        found = atoms.calc.results
        found.update(energy=energy(found["energy"]), forces=forces(found["forces"]))

    return change


def moved(by):
    def change(atoms, number):
        atoms.positions[0, 0] += by

    return change


def turned(atoms, number):
    found = atoms.calc.results
    atoms.rotate(40, "x")
    atoms.calc = SinglePointCalculator(atoms, **found)


def grown(atoms, number):
    energy, forces = atoms.calc.results["energy"], np.zeros((8, 3))
    atoms.append("Ar")
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)


def exchanged(atoms, number):
    atoms.positions[[0, 3]] = atoms.positions[[3, 0]]


def predicted(reader):
    def change(atoms, number):
        frame = reader.frame(reader.state().query(number).frame_id)
        atoms.calc.results.update(energy=frame.energy, forces=frame.forces)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("energy"), "no energy"),
        (drop("forces"), "no forces"),
        (results(energy=lambda e: np.nan), "not finite"),
        (results(forces=lambda f: f * np.inf), "not finite"),
        (say(fingerprint="ORCA 6 B3LYP"), "must not be mixed"),
        (drop("fingerprint"), "does not say its level of theory"),
        (say(campaign="c123"), "belongs to the campaign c123"),
        (say(charge=1), "charge 1, this campaign has 0"),
        (say(query=17), "names none of the 3"),
        (say(query="1; DROP TABLE labels"), "names none of the 3"),
        (say(energy_unit="furlong"), "energy_unit='furlong' is not known"),
        (moved(0.01), "0.01 Å from its place"),
        (turned, "turned or shifted as a whole"),
        (exchanged, "changed places"),
        (results(forces=lambda f: -f), "look like gradients"),
        (results(forces=lambda f: 51.4 * f), "times those of the model"),
        (results(forces=lambda f: f + [1, 0, 0]), "sum to zero"),
        (say(query=2), "labelled a second time|not the geometry of frame 2"),
        (grown, "has 8 atoms, not 7"),
        (lambda atoms, number: atoms.symbols.__setitem__(2, "Kr"), "atom 3 is Kr, not Ar"),
    ],
)
def test_what_is_no_label_of_the_frame_is_refused(reader, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as refused:
        exchange.read_labels(reader, answers(reader, tmp_path, change), "back.xyz")
    assert "nothing was imported" in str(refused.value)


def test_forces_of_other_atoms_are_recognised_by_the_model(rng):
    numbers = np.array([6, 6, 1, 1, 1, 1])
    true = rng.normal(size=(6, 3))
    guess = true + 0.05 * rng.normal(size=(6, 3))
    exchange._check_forces(true, guess, numbers)
    with pytest.raises(InputError, match="other atoms"):
        exchange._check_forces(true[[1, 0, 4, 5, 2, 3]], guess, numbers)
    exchange._check_forces(rng.normal(size=(6, 3)), guess, numbers)  # a poor model proves nothing


def test_the_models_own_prediction_is_refused(reader, tmp_path):
    with pytest.raises(InputError, match="own prediction"):
        exchange.read_labels(reader, answers(reader, tmp_path, predicted(reader)), "back.xyz")


def test_the_same_frame_twice_is_refused(reader, tmp_path):
    data = answers(reader, tmp_path)
    with pytest.raises(InputError, match="frame 1 is labelled a second time"):
        exchange.read_labels(reader, data + data, "back.xyz")


def test_units_are_converted_when_they_are_declared(reader, tmp_path):
    plain = exchange.read_labels(reader, answers(reader, tmp_path), "back.xyz")
    kcal = results(lambda e: e / KCAL_PER_MOL, lambda f: f / KCAL_PER_MOL)

    def silent(atoms, number):
        kcal(atoms, number)
        drop("energy_unit", "force_unit")(atoms, number)

    data = answers(reader, tmp_path, silent)
    declared = Declared(energy_unit="kcal/mol", force_unit="kcal/mol/A")
    offer = exchange.read_labels(reader, data, "back.xyz", declared)
    for label, wanted in zip(offer.labels, plain.labels, strict=True):
        assert label.energy == pytest.approx(wanted.energy, rel=1e-6)
        np.testing.assert_allclose(label.forces, wanted.forces, atol=1e-6)
    with pytest.raises(InputError, match="times those of the model"):
        exchange.read_labels(reader, data, "back.xyz")
    with pytest.raises(InputError, match="'kcal/mol' was declared"):
        exchange.read_labels(reader, answers(reader, tmp_path), "back.xyz", declared)


def test_a_frame_without_its_number_is_known_by_its_geometry(reader, tmp_path):
    bare = answers(reader, tmp_path, lambda atoms, number: atoms.info.clear())
    level = Declared(fingerprint=reader.fingerprint)
    assert exchange.read_labels(reader, bare, "back.xyz", level).ids == (1, 2, 3)
    far = answers(reader, tmp_path, lambda atoms, n: (atoms.info.clear(), moved(0.01)(atoms, n)))
    with pytest.raises(InputError, match="the nearest is 1, but atom Ar1 lies 0.01 Å"):
        exchange.read_labels(reader, far, "back.xyz", level)


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "x.xyz", "empty"),
        (b"\xff\xfe\x00", "x.xyz", "not a text file"),
        (pickle.dumps({"energy": 1}), "x.xyz", "not a text file|not extended XYZ"),
        (b"7\n\nAr 0 0 0\n", "x.xyz", "cut off"),
        (b"1\n\nAr 0 0 0\n", "x.traj", "read from extended XYZ"),
    ],
)
def test_a_file_that_is_no_extended_xyz_is_refused(reader, data, name, message):
    with pytest.raises(InputError, match=message):
        exchange.read_labels(reader, data, name)


def test_a_large_file_is_refused_unread(reader, monkeypatch):
    monkeypatch.setattr(labels, "MAX_FILE_BYTES", 10)
    with pytest.raises(InputError, match="larger than"):
        exchange.read_labels(reader, b"x" * 11, "x.xyz")


def test_a_frame_with_a_label_is_left_alone(finished, tmp_path):
    with CampaignReader(finished) as reader:
        query, row = reader.state().query(1), reader.labels()[0]
        text = exchange.frame_text(reader, query)
        atoms = ase.io.read(io.StringIO(text), format="extxyz")
        atoms.calc = SinglePointCalculator(atoms, energy=row.energy, forces=row.forces)
        file = io.StringIO()
        ase.io.write(file, atoms, format="extxyz")
        with pytest.raises(InputError, match="has a label already"):
            exchange.read_labels(reader, file.getvalue().encode(), "x.xyz")


def forged(label, **changes):
    return type(label)(**{**vars(label), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "another"}, "must not be mixed"),
        ({"forces": np.ones((7, 3))}, "sum to zero"),
        ({"forces": np.zeros((6, 3))}, "shape"),
    ],
)
def test_the_worker_checks_again(waiting, tmp_path, changes, message):
    with CampaignReader(waiting) as reader:
        offer = exchange.read_labels(reader, answers(reader, tmp_path), "back.xyz")
        commander = Commander(waiting)
        labels = [*offer.labels[:2], forged(offer.labels[2], **changes)]
        number = commander.offer(ev.ImportLabels(ids=(1, 2, 3)), labels)
        bare = commander.post(ev.ImportLabels(ids=(1, 2, 3)))
        worker.run_inline(waiting)
        assert message in reader.command(number).outcome
        assert "without the labels" in reader.command(bare).outcome
        assert reader.state().ids("waiting") == (1, 2, 3) and reader.labels() == []


def test_an_import_that_dies_half_way_leaves_nothing_and_is_done_later(
    waiting, tmp_path, monkeypatch
):
    with CampaignReader(waiting) as reader:
        offer = exchange.read_labels(reader, answers(reader, tmp_path), "back.xyz")
        number = exchange.hand_over(Commander(waiting), offer, "Ada")
        keep, kept = store.Store.add_label, []

        def die(self, query_id, *rest):
            if kept:
                raise KeyboardInterrupt
            kept.append(query_id)
            keep(self, query_id, *rest)

        monkeypatch.setattr(store.Store, "add_label", die)
        with pytest.raises(KeyboardInterrupt):
            worker.run_inline(waiting)
        assert reader.labels() == [] and reader.command(number).outcome is None
        monkeypatch.undo()
        assert Runner(waiting).state.ids("waiting") == (1, 2, 3)
        assert worker.run_inline(waiting, until=lambda state: state.trusted).trusted
        assert len(reader.labels()) >= 3


@pytest.fixture(scope="module")
def tense(tmp_path_factory, crystal):
    """A campaign with a tolerance on stress whose first frames wait; do not change it."""
    folder = tmp_path_factory.mktemp("tense")
    given = crystal(folder, labelling__mode="approve", trust__stress_tolerance="0.02 GPa")
    worker.prepare(folder / "argon", given)
    assert worker.run_inline(folder / "argon").ids("waiting") == (1, 2, 3)
    return folder / "argon"


def test_stress_comes_back_with_the_labels_and_is_learned(tense, tmp_path):
    directory = shutil.copytree(tense, tmp_path / "campaign")
    with CampaignReader(directory) as reader:
        offer = exchange.read_labels(reader, answers(reader, tmp_path), "back.xyz")
        exchange.hand_over(Commander(directory), offer, "Ada")
        assert worker.run_inline(directory, until=lambda state: state.trusted).trusted
        rows = reader.labels()
        truth = make_reference(reader.settings.labelling.reference)
        for row in rows:
            label = truth.compute(reader.structure_at(row.frame_id))
            np.testing.assert_allclose(row.stress, label.stress, atol=1e-8)
            assert row.stress_ratio > 0


def drop_stress(atoms, number):
    del atoms.calc.results["stress"]


def of_another_origin(atoms, number):
    """Energy and forces of a reference, beside a stress that may be the model's own."""
    results = atoms.calc.results
    atoms.info["REF_energy"] = results.pop("energy")
    atoms.arrays["REF_forces"] = results.pop("forces")


@pytest.mark.parametrize(
    ("change", "name"), [(drop_stress, "add stress"), (of_another_origin, "add REF_stress")]
)
def test_labels_without_the_stress_that_is_promised_are_refused(tense, tmp_path, change, name):
    with CampaignReader(tense) as reader, pytest.raises(InputError, match=name):
        exchange.read_labels(reader, answers(reader, tmp_path, change), "back.xyz")


@pytest.mark.parametrize(
    ("stress", "message"),
    [
        (None, "has no stress"),
        (np.ones(6), r"shape \(6,\)"),
        (np.full((3, 3), np.nan), "not finite"),
        (np.triu(np.ones((3, 3))), "not symmetric"),
    ],
)
def test_the_worker_checks_the_stress_again(tense, tmp_path, stress, message):
    directory = shutil.copytree(tense, tmp_path / "campaign")
    with CampaignReader(directory) as reader:
        runner = Runner(directory)
        runner.open()
        offer = exchange.read_labels(reader, answers(reader, tmp_path), "back.xyz")
        with pytest.raises(LabelError, match=message):
            runner.engine.accept(forged(offer.labels[0], stress=stress))
        runner.close()
