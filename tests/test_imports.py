"""What importing may load, where import-linter's contracts cannot say it."""

import pkgutil
import subprocess
import sys

import grimp
import pytest

import app

LOADED = (
    "import sys, {module}; print(*sorted({heavy} & {{m.partition('.')[0] for m in sys.modules}}))"
)


def loaded(module: str, heavy: set[str]) -> str:
    """Which of the heavy packages a fresh interpreter holds after importing the module."""
    code = LOADED.format(module=module, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def app_modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(app.__path__, "app.")]
    return ["app", *found]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("core", "app", include_external_packages=True, cache_dir=None)


def test_the_app_loads_no_torch():
    modules = [name for name in app_modules() if name != "app.main"]  # a page: served, not imported
    assert loaded(", ".join(modules), {"torch", "mace", "e3nn"}) == ""


@pytest.mark.parametrize("module", ["core", "core.settings", "core.contracts", "core.worker"])
def test_what_the_app_needs_of_core_loads_no_torch(module):
    assert loaded(module, {"torch", "mace", "e3nn", "panel", "bokeh"}) == ""


@pytest.mark.parametrize("package", ["mace", "e3nn"])
def test_only_adapters_named_mace_import_it(graph, package):
    importers = graph.find_modules_that_directly_import(package) if package in graph.modules else ()
    assert [m for m in importers if not m.startswith("core.potentials.mace")] == []


def test_the_check_of_loaded_packages_can_fail():
    assert loaded("bokeh", {"bokeh", "torch"}) == "bokeh"


def test_a_potential_loads_neither_maces_trainer_nor_what_only_that_needs():
    heavy = {"matplotlib", "pandas", "torchmetrics"}
    assert loaded("core.potentials.mace", heavy) == ""


def test_what_was_left_out_of_mace_is_there_for_who_asks():
    code = (
        "import sys, core.potentials.mace\n"
        "from mace.tools import SWAContainer, train\n"
        "import torch._dynamo\n"
        "from mace.tools.torch_tools import get_change_of_basis\n"
        "assert get_change_of_basis().shape == (6, 3, 3)\n"
        "module = sys.modules['mace.tools.train']\n"
        "assert train is module.train and SWAContainer is module.SWAContainer\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
