"""A settings string names a reference, or the message lists what is accepted."""

import subprocess
import sys

import pytest

from core.errors import SettingsError
from core.reference import make


@pytest.mark.parametrize("name", ["gfn2-xtb", "GFN2-xTB", " gfn2-xtb "])
def test_a_method_by_name(name):
    assert " GFN2-xTB charge=1 spin=1 " in make(name, charge=1, spin=1).fingerprint


@pytest.mark.parametrize("name", ["", "b3lyp", "teacher", "teacher:", "gfn2-xtb:x", "dft:", "ase:"])
def test_unknown_names_list_what_is_accepted(name):
    with pytest.raises(SettingsError, match="accepted: gfn1-xtb, gfn2-xtb, dft:FUNCTIONAL/BASIS"):
        make(name)


def test_the_inside_of_a_label_process_loads_no_numerical_library_before_it_sets_threads():
    code = "import core.reference.child, sys; sys.exit(bool({'numpy', 'ase'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
