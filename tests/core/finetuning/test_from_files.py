"""From a file of labels to a bundle with its receipt, and to a report."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from sample_labels import frames, labelled, small_mace

from app import evaluation_report
from core.campaign import extxyz
from core.campaign.evaluate import Inquiry, evaluate
from core.campaign.finetune import CHECKPOINT, RECEIPT, Order, finetune, isolated_atom
from core.errors import InputError, ModelError
from core.finetuning.tuning import FOUNDATION, TARGET, TuningSettings
from core.potentials import load
from core.potentials.load import save

LEVEL = "teacher"
SHORT = TuningSettings(steps=8, batch_size=4, probe=5)


def write(path, labels, levels=(LEVEL,), prefix="REF_"):
    texts = (
        extxyz.write(
            s, {f"{prefix}energy": float(e), "fingerprint": levels[k % len(levels)]},
            {"pos": s.positions, f"{prefix}forces": f},
        )
        for k, (s, e, f) in enumerate(
            zip(labels.structures, labels.energies, labels.forces, strict=True)
        )
    )  # fmt: skip
    extxyz.save(path, texts)
    return path


@pytest.fixture(scope="module")
def order(tmp_path_factory, labels, pretraining):
    folder = tmp_path_factory.mktemp("files")
    save(small_mace(1), folder / "foundation", {})
    write(folder / "train.extxyz", labels)
    write(folder / "own.extxyz", pretraining, ("foundation",))
    return Order(
        train=folder / "train.extxyz", out=folder / "out", model=str(folder / "foundation"),
        rehearsal=folder / "own.extxyz", dtype="float64", tuning=SHORT,
    )  # fmt: skip


def test_labels_become_a_bundle_and_a_receipt(order, labels):
    held_out = write(order.train.with_name("test.extxyz"), labels)
    receipt = finetune(replace(order, held_out=held_out))
    assert json.loads((order.out / RECEIPT).read_text())["label_fingerprint"] == LEVEL
    assert not (order.out / CHECKPOINT).exists()
    assert set(receipt.errors) == {"trained", "validation", "held out", "foundation's own"}
    tuned = load(str(order.out), dtype="float64")
    assert tuned.weights_hash() == receipt.weights_after and tuned.head == TARGET
    again = tuned.predict(labels.structures, forces=False).energies
    sizes = np.array([len(s) for s in labels.structures])
    rms = np.sqrt((((again - labels.energies) / sizes) ** 2).mean())
    assert rms == pytest.approx(receipt.errors["held out"][1].energy, rel=1e-4)
    with pytest.raises(InputError, match="holds a model already"):
        finetune(order)


def test_a_rehearsed_model_keeps_both_heads_in_its_bundle(order, tmp_path, pretraining):
    receipt = finetune(replace(order, out=tmp_path / "out", strategy="replay"))
    tuned = load(str(tmp_path / "out"), dtype="float64")
    assert tuned.heads == (FOUNDATION, TARGET)
    with tuned.using(FOUNDATION):
        assert tuned.isolated_energies == pytest.approx(small_mace(1).isolated_energies)
        found = tuned.predict(pretraining.structures[:3])
    assert np.isfinite(found.energies).all() and receipt.labels["rehearsed"] > 0


def test_pseudolabels_are_the_foundations_own_predictions(order, tmp_path):
    """Whatever labels the given frames carry, they are rehearsed as the foundation has them."""
    wrong = labelled(small_mace(3), frames(["CH4", "H2O", "HCN", "NH3"], 40, seed=1))
    own = write(tmp_path / "own.extxyz", wrong, ("another",))
    found = {
        name: finetune(replace(order, out=tmp_path / name, strategy=name, rehearsal=own))
        for name in ("replay", "pseudolabel-replay")
    }
    before = {name: receipt.errors["foundation's own"][0] for name, receipt in found.items()}
    assert before["replay"].force > 0.05, "the file's labels are another model's"
    assert before["pseudolabel-replay"].force == pytest.approx(0, abs=1e-9)
    assert found["pseudolabel-replay"].labels["rehearsed"] == 35
    assert load(str(tmp_path / "pseudolabel-replay")).heads == (FOUNDATION, TARGET)


def test_atoms_computed_with_the_reference_go_into_the_bundle(order, labels, tmp_path):
    """Labels of another model: the receipt warns that the energies do not belong together."""
    asked = replace(order, isolated="computed", reference="gfn2-xtb", out=tmp_path / "out")
    receipt = finetune(asked)
    tuned = load(str(tmp_path / "out"), dtype="float64")
    shown = receipt.isolated["elements"]
    assert receipt.isolated["how"] == "computed" and set(shown) == {"H", "C", "O"}
    for symbol, z in (("H", 1), ("O", 8)):
        at = tuned.elements.index(z)
        assert tuned.isolated_energies[at] == pytest.approx(isolated_atom(z, "gfn2-xtb"))
        assert shown[symbol]["energy_eV"] == pytest.approx(tuned.isolated_energies[at])
    (warning,) = [n for n in receipt.notes if "do not mean the same energy" in n]
    assert f"by {1e3 * receipt.isolated['after_eV_per_atom']:.0f} meV/atom" in warning


def test_the_foundations_atoms_are_kept_if_asked_and_their_error_told(order, labels, tmp_path):
    shifted = replace(labels, energies=labels.energies + 9 * 0.8)
    train = write(tmp_path / "train.extxyz", shifted)
    kept = finetune(replace(order, train=train, isolated="foundation", out=tmp_path / "kept"))
    tuned = load(str(tmp_path / "kept"), dtype="float64")
    assert tuned.isolated_energies == pytest.approx(small_mace(1).isolated_energies)
    assert any("as the foundation has them" in note for note in kept.notes)
    fitted = finetune(replace(order, train=train, out=tmp_path / "fitted"))
    assert not any("do not mean the same energy" in note for note in fitted.notes)
    assert fitted.errors["trained"][1].energy < 0.1 * kept.errors["trained"][1].energy


def test_an_interrupted_run_goes_on_and_ends_the_same(order, tmp_path):
    whole = finetune(replace(order, out=tmp_path / "whole"))
    cut = replace(order, out=tmp_path / "cut")

    def interrupt(progress, epochs):
        if progress.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(cut, interrupt)
    assert (cut.out / CHECKPOINT).exists()
    with pytest.raises(InputError, match="unfinished fine-tuning with other"):
        finetune(replace(cut, strategy="lora"))
    epochs = []
    receipt = finetune(cut, lambda progress, n: epochs.append(progress.epoch))
    assert epochs[0] == 2 and receipt.weights_after == whole.weights_after


def test_labels_that_cannot_be_learned_are_refused(order, labels, tmp_path):
    def refused(path, match, error=InputError, **changes):
        with pytest.raises(error, match=match):
            finetune(replace(order, train=path, out=tmp_path / "none", **changes))
        assert not (tmp_path / "none").exists()

    refused(tmp_path / "absent.extxyz", "no file")
    refused(write(tmp_path / "two.extxyz", labels, ("PBE", "B3LYP")), "mixes labels of 2 levels")
    (tmp_path / "empty.extxyz").write_text("")
    refused(tmp_path / "empty.extxyz", "is empty")
    other = labelled(small_mace(2), frames(["CH4"], 2))
    sulfur = [s.__class__(np.where(s.numbers == 6, 16, s.numbers), s.positions)
              for s in other.structures]  # fmt: skip
    foreign = replace(other, structures=tuple(sulfur))
    refused(write(tmp_path / "s.extxyz", foreign), "does not know S", ModelError)
    good = write(tmp_path / "good.extxyz", labels)
    refused(good, "accepted: naive", strategy="all")
    refused(good, "name the level", isolated="computed")
    refused(good, "errors between two levels", held_out=write(
        tmp_path / "other.extxyz", labels, ("B3LYP",)))  # fmt: skip
    bad = labels.forces[0] + 1.0
    broken = replace(labels, forces=(bad, *labels.forces[1:]))
    refused(write(tmp_path / "bad.extxyz", broken), "forces do not sum to zero")


def test_predictions_of_a_campaign_are_not_taken_for_labels(order, labels, tmp_path):
    s = labels.structures[0]
    text = extxyz.write(
        s, {"energy": -1.0, "sigma_energy": 0.1, "step": 3},
        {"pos": s.positions, "forces": labels.forces[0]},
    )  # fmt: skip
    extxyz.save(tmp_path / "campaign.extxyz", [text])
    with pytest.raises(InputError, match="none of its frames has a label"):
        finetune(replace(order, train=tmp_path / "campaign.extxyz", out=tmp_path / "none"))


def test_isolated_atoms_are_computed_in_their_ground_state():
    hydrogen, oxygen = (isolated_atom(z, "gfn2-xtb") for z in (1, 8))
    assert hydrogen == pytest.approx(-10.70, abs=0.05)
    assert oxygen == pytest.approx(-102.5, abs=1.0)


def test_two_models_are_evaluated_side_by_side_and_reported(order, tmp_path):
    out = tmp_path / "tuned"
    finetune(replace(order, out=out))
    inquiry = Inquiry(
        (order.model, str(out)), order.train, pretraining=order.rehearsal,
        picoseconds=0.02, trials=1, dtype="float64",
    )  # fmt: skip
    told = []
    result = evaluate(inquiry, lambda model, finding: told.append((model, finding.name)))
    assert len(told) == 14 and set(result["models"]) == {order.model, str(out)}
    assert result["labels"] == {"file": "train.extxyz", "n": 20, "level": LEVEL}
    evaluation_report.write(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["labels"]["n"] == 20
    for words in ("Short-range repulsion", "train.extxyz", result["because"].split(";")[0][:30]):
        assert words in page
    assert not re.search(r"<(script|link)[^>]*\s(src|href)=", page), "it needs no other file"
    with pytest.raises(InputError, match="named twice"):
        evaluate(replace(inquiry, models=(order.model, order.model)))
