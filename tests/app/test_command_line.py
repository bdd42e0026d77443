"""The commands as a person types them: figures, messages and exit codes."""

import functools
import http.server
import io
import json
import subprocess
import sys
import threading

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from app import __main__ as command_line
from core.reference import make as make_reference
from core.structures import Structure, from_atoms
from tests.core.potentials.test_convert import checkpoint

SETTINGS = """
[structure]
file = "pair.xyz"
[potential]
model = "lennard-jones"
dtype = "float64"
[dynamics]
temperature_K = 10
timestep_fs = 4
steps = 100
[trust]
initial_labels = 3
initial_stride = 10
energy_tolerance = "0.1 kcal/mol"
[labelling]
reference = "teacher:lennard-jones:0.0115:3.45"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("command_line")
    triangle = np.array([(0, 0, 0), (3.8, 0, 0), (1.9, 3.3, 0)])
    Structure(np.full(3, 18), triangle).to_atoms().write(made / "pair.xyz", format="extxyz")
    (made / "s.toml").write_text(SETTINGS)
    return made


@pytest.fixture
def flywise(folder, monkeypatch, capsys):
    """Run a command in the folder; return exit code, standard output and standard error."""
    monkeypatch.chdir(folder)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flywise", *words])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


def test_run_then_look_at_it_in_every_way(flywise, folder):
    code, out, err = flywise("run", "s.toml", "--out", "D", "--json", "--seed", "3")
    figures = json.loads(out.splitlines()[-1])
    assert code == 0 and figures["steps"] == 100 and figures["labels"] >= 3
    assert figures["wall_s"] > 0 and figures["untrusted_steps"] == 30
    assert "learned 3 labels" in err

    code, out, _ = flywise("status", "D")
    assert code == 0 and out.startswith("finished") and "100 of 100" in out
    code, out, _ = flywise("status", "D", "--json")
    assert json.loads(out)["worker_pid"] is None

    code, out, _ = flywise("audit", "D", "--every", "10", "--json")
    report = json.loads(out)
    assert code == 0 and report["frames"] + sum(report["excluded"].values()) == 10
    assert {"within_tolerance", "interval", "rmse_eV"} < set(report)
    code, out, _ = flywise("audit", "D", "--every", "50")
    assert code == 0 and "recomputed" in out

    code, out, _ = flywise("export", "D", "x.extxyz")
    assert code == 0 and len(ase.io.read(folder / "x.extxyz", ":")) == 10

    code, _, err = flywise("export", "D", "w.extxyz", "--waiting")
    assert code == 2 and "nothing to label" in err
    code, _, err = flywise("import", "D", "x.extxyz")
    assert code == 2 and "nothing was imported" in err
    code, _, err = flywise("import", "D", "absent.xyz")
    assert code == 2 and "no file absent.xyz" in err

    code, _, err = flywise("run", "s.toml", "--out", "D")
    assert code == 2 and "labelling.seed is 3, not 1" in err


def test_an_audit_of_a_crystal_tells_of_its_stress(flywise, breathed):
    code, out, _ = flywise("audit", str(breathed), "--every", "100")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("stress"))
    assert "GPa" in line and "% within tolerance" in line


def test_frames_are_labelled_elsewhere(flywise, folder):
    asking = SETTINGS.replace("[labelling]", '[labelling]\nmode = "approve"')
    (folder / "ask.toml").write_text(asking)
    code, _, err = flywise("run", "ask.toml", "--out", "E")
    assert code == 0 and "wait for a decision" in err
    code, out, _ = flywise("export", "E", "w.extxyz", "--waiting", "--json")
    assert code == 0 and json.loads(out)["frames"] == 3
    atoms = ase.io.read(folder / "w.extxyz", ":")
    teacher = make_reference("teacher:lennard-jones:0.0115:3.45")
    for one in atoms:
        label = teacher.compute(from_atoms(one))
        one.calc = SinglePointCalculator(one, energy=label.energy, forces=label.forces)
    ase.io.write(folder / "back.extxyz", atoms)
    code, out, _ = flywise("import", "E", "back.extxyz", "--who", "Ada", "--json")
    figures = json.loads(out)
    assert code == 0 and (figures["labels"], figures["taken"]) == (3, False)
    flywise("run", "ask.toml", "--out", "E")
    code, out, _ = flywise("status", "E", "--json")
    assert json.loads(out)["trusted"] and json.loads(out)["labels"] >= 3


def test_an_earlier_snapshot_is_put_in_force(flywise, folder):
    (folder / "often.toml").write_text(SETTINGS + "every = 20\n")
    assert flywise("run", "often.toml", "--out", "R")[0] == 0
    code, out, _ = flywise("snapshots", "R", "--json")
    figures = json.loads(out.splitlines()[-1])
    assert code == 0 and figures["in_force"] == len(figures["snapshots"]) > 1
    assert figures["snapshots"][0]["receipt"]["errors"]["new"]["n"] == 3
    code, _, err = flywise("rollback", "R", "99")
    assert code == 1 and "There is no snapshot 99" in err
    code, _, err = flywise("rollback", "R", str(figures["in_force"]))
    assert code == 1 and "in force already" in err
    code, out, _ = flywise("rollback", "R", "1")
    assert code == 0 and "when the campaign runs next" in out
    assert flywise("run", "often.toml", "--out", "R")[0] == 0
    after = json.loads(flywise("snapshots", "R", "--json")[1].splitlines()[-1])
    last = after["snapshots"][-1]
    assert last["restored"] == 1 and after["in_force"] == last["id"]
    assert last["weights"] == figures["snapshots"][0]["weights"]


def test_strategies_are_listed_and_labels_learned_from_a_file(flywise, folder):
    code, out, _ = flywise("strategies")
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()][0] == "naive"
    code, _, err = flywise("finetune", "absent.extxyz", "--out", "T")
    assert code == 2 and "There is no file absent.extxyz" in err
    code, _, err = flywise("finetune", "pair.xyz", "--out", "T", "--isolated", "guessed")
    assert code == 2 and "accepted: estimated, computed, foundation" in err
    code, _, err = flywise("evaluate", "bundled", "--on", "pair.xyz", "--out", "r.pdf")
    assert code == 2 and "ending in .html" in err
    ethanol = from_atoms(molecule("CH3CH2OH"))
    label = make_reference("gfn2-xtb").compute(ethanol)
    atoms = ethanol.to_atoms()
    atoms.calc = SinglePointCalculator(atoms, energy=label.energy, forces=label.forces)
    ase.io.write(folder / "ethanol.extxyz", [atoms], format="extxyz")
    code, out, err = flywise(
        "finetune", "ethanol.extxyz", "--out", "T", "--steps", "3", "--threads", "1", "--json"
    )
    figures = json.loads(out.splitlines()[-1])
    assert code == 0 and figures["settings"]["strategy"] == "naive" and "epoch" in err
    assert figures["model"] == "T" and figures["labels"]["trained"] == 1


def test_a_pool_is_screened_and_what_is_left_out_is_named(flywise, folder):
    water, crushed = molecule("H2O"), molecule("H2O")
    crushed.positions *= 0.2
    ase.io.write(folder / "pool.xyz", [water, *[crushed] * 6, water], format="extxyz")
    command = ("screen", "pool.xyz", "-n", "1", "--kernel", "activation", "--out", "one.xyz")
    code, out, err = flywise(*command)
    assert code == 0 and "1 of 2, written to one.xyz" in out
    assert "structure 1: the frame at line" in err and "overlap" in err
    assert "structure 5:" in err and "structure 6:" not in err
    assert "6 structures in all" in err
    figures = json.loads(flywise(*command, "--json")[1])
    assert list(figures["left_out"]) == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (('"0.1 kcal/mol"', '"0.1 furlong"'), 2, "furlong"),
        (('"0.1 kcal/mol"', "0"), 2, "energy_tolerance"),
        (("pair.xyz", "absent.xyz"), 2, "no file"),
        (('"lennard-jones"', '"unheard-of"'), 2, "unheard-of"),
        (('"teacher:lennard-jones:0.0115:3.45"', '"oracle"'), 2, "oracle"),
        (('file = "pair.xyz"', 'name = "H2O"'), 2, "does not know"),
        (("steps = 100", "stepz = 100"), 2, "did you mean"),
        (("[trust]", "[trust"), 2, "not valid TOML"),
    ],
)
def test_wrong_settings_end_in_one_message(flywise, folder, tmp_path, change, code, message):
    (folder / "bad.toml").write_text(SETTINGS.replace(*change))
    found, _, err = flywise("run", "bad.toml", "--out", str(tmp_path / "D"))
    assert found == code and message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("status", "nowhere"), 1, "holds no campaign"),
        (("audit", "nowhere", "--every", "10"), 1, "holds no campaign"),
        (("audit", "nowhere"), 2, "--every"),
        (("run", "absent.toml", "--out", "D2"), 2, "no settings file"),
        (("bench", "unheard-of"), 2, "no benchmark"),
        (("dance",), 2, "dance"),
    ],
)
def test_wrong_usage_is_explained(flywise, words, code, message):
    found, _, err = flywise(*words)
    assert found == code and message in err


def test_models_are_listed(flywise):
    code, out, _ = flywise("models", "--json")
    assert code == 0 and "bundled" in json.loads(out)["models"]


class Terminal(io.StringIO):
    """A keyboard on which an answer was typed."""

    def isatty(self):
        return True


@pytest.fixture
def served(tmp_path):
    """A folder that holds a checkpoint, and the address it can be fetched from."""
    checkpoint(tmp_path, torch.float32)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_a_checkpoint_is_opened_only_after_a_person_agreed(flywise, served, monkeypatch):
    (file,) = served[0].glob("*.model")
    words = ("convert", str(file), str(served[0] / "bundle"))
    code, _, err = flywise(*words)
    assert code == 2 and "--yes" in err and not (served[0] / "bundle").exists()
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    code, out, err = flywise(*words)
    assert code == 2 and "Go on? [y/N]" in out + err and not (served[0] / "bundle").exists()
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    code, out, _ = flywise(*words)
    assert code == 0 and "structures differ by at most" in out
    assert (served[0] / "bundle" / "model.safetensors").is_file()
    code, out, _ = flywise("convert", str(file), str(served[0] / "again"), "--yes", "--json")
    figures = json.loads(out)
    assert code == 0 and figures["elements"] == ["H", "C", "O"]
    assert figures["largest_force_difference_eV_per_A"] < 1e-4


def test_a_published_model_is_fetched_once_its_licence_is_accepted(flywise, served, monkeypatch):
    monkeypatch.setenv("FLYWISE_HOME", str(served[0] / "home"))
    (file,) = served[0].glob("*.model")
    words = ("download", "mace-off:small", "--url", served[1] + file.name)
    code, _, err = flywise(*words)
    assert code == 2 and "Academic Software License" in err and "--yes" in err
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    code, out, err = flywise(*words)
    assert code == 2 and "Accept both? [y/N]" in out + err
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    code, out, err = flywise(*words)
    assert code == 0 and 'model = "mace-off:small"' in out and " MB" in err
    code, out, _ = flywise("models", "--json")
    assert code == 0 and "mace-off:small" in json.loads(out)["models"]
    code, _, err = flywise("download", "mace-off:tiny")
    assert code == 2 and "accepted: mace-mp:small" in err


def test_the_help_needs_no_torch():
    code = "import sys, app.__main__; print('torch' in sys.modules, 'panel' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
