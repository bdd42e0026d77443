import ase.io
import numpy as np
import pytest

from core.campaign.export import export, frame_text
from core.campaign.reader import CampaignReader
from core.errors import InputError


def test_an_exported_campaign_is_read_by_ase(finished, tmp_path):
    count = export(finished, tmp_path / "out.extxyz")
    frames = ase.io.read(tmp_path / "out.extxyz", ":")
    assert len(frames) == count == 20
    labelled = [atoms for atoms in frames if "REF_energy" in atoms.info]
    with CampaignReader(finished) as reader:
        labels = reader.labels()
        first = reader.frame(labels[0].frame_id)
    assert [a.info["REF_energy"] for a in labelled] == pytest.approx([x.energy for x in labels])
    np.testing.assert_allclose(labelled[0].arrays["REF_forces"], labels[0].forces)
    np.testing.assert_allclose(labelled[0].positions, first.positions)
    assert labelled[0].info["fingerprint"] == labels[0].fingerprint
    assert labelled[0].info["decided_by"] == "threshold"
    assert labelled[0].arrays["sigma_forces"].shape == (7,)


def test_a_name_with_quotes_survives(finished, tmp_path):
    with CampaignReader(finished) as reader:
        query = reader.state().query(1)
        frame = reader.frame(query.frame_id)
        changed = type(query)(**{**vars(query), "decided_by": 'Ada "the" \\ Countess'})
        text = frame_text(reader.structure, frame, changed, None)
    (tmp_path / "one.xyz").write_text(text)
    atoms = ase.io.read(tmp_path / "one.xyz", format="extxyz")
    assert atoms.info["decided_by"] == 'Ada "the" \\ Countess'


def test_another_suffix_is_refused(finished, tmp_path):
    with pytest.raises(InputError, match="extended XYZ"):
        export(finished, tmp_path / "out.traj")
