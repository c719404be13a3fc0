"""Thresholds from a file, into a file, and learnt from healthy runs."""

import pytest

import gradwatch
from gradwatch.detectors import DEFAULT, Example, VanishingGradient, ZeroGradient, fit, read, write
from gradwatch.errors import InvalidSetting
from gradwatch.history import History
from gradwatch.testing import judge


def history_of(example):
    history = History()
    for record in example.records():
        history.append(record)
    return history


STEEP = Example(
    {("a.weight", "parameter_grad"): [1e-4] * 60, ("b.weight", "parameter_grad"): [1.0] * 60},
    losses=[2.3] * 60,
)
"""A user's own kind of run: one layer gets a ten-thousandth of the other's gradient, and that is how it should be."""


def test_what_is_written_is_read_back(tmp_path):
    write(DEFAULT, tmp_path / "thresholds.toml")
    assert read(tmp_path / "thresholds.toml") == DEFAULT


def test_a_file_changes_what_it_names(tmp_path):
    path = tmp_path / "thresholds.toml"
    path.write_text("[VanishingGradient]\nshare = 1e-5\nconfirm = 30\n\n[LossStagnant]\nenabled = false\n")
    changed = read(path)
    assert VanishingGradient(share=1e-5, confirm=30) in changed
    assert len(changed) == len(DEFAULT) - 1
    assert [finding.kind for finding in judge(STEEP, *changed)] == []
    assert [finding.kind for finding in judge(STEEP, VanishingGradient())] == ["vanishing_gradient"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[Vanishing]\nshare = 1e-5", "there is no detector 'Vanishing'"),
        ("share = 1e-5", "there is no detector 'share'"),
        ("[VanishingGradient]\nratio = 1e-5", "VanishingGradient has no setting 'ratio'; it has confirm, span, release, share"),
        ("[VanishingGradient]\nshare = 'small'", "VanishingGradient.share = 'small' is no float"),
        ("[VanishingGradient]\nconfirm = 1.5", "VanishingGradient.confirm = 1.5 is no int"),
        ("[VanishingGradient]\nshare = true", "VanishingGradient.share = True is no float"),
        ("[VanishingGradient", "thresholds.toml: "),
    ],
)
def test_a_file_that_makes_no_sense_says_where(tmp_path, text, words):
    path = tmp_path / "thresholds.toml"
    path.write_text(text)
    with pytest.raises(InvalidSetting) as raised:
        read(path)
    assert words in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidSetting, match=r"missing\.toml"):
        read(tmp_path / "missing.toml")


def test_fit_widens_what_speaks_about_a_healthy_run_and_nothing_else(tmp_path):
    before = (VanishingGradient(), ZeroGradient())
    vanishing, zero = fit([history_of(STEEP)], before, tmp_path / "mine.toml")
    assert zero == ZeroGradient()
    # The run shows a share of 1e-4: half of 3e-4 and a quarter of it are still above that or close to it.
    assert vanishing.share == pytest.approx(3e-4 / 2**4)
    assert judge(STEEP, vanishing, zero) == []
    assert read(tmp_path / "mine.toml", before) == (vanishing, zero)


def test_fit_learns_from_a_recorded_run(tmp_path):
    from gradwatch.writers.tensorboard import EventFileWriter

    writer = EventFileWriter(tmp_path)
    for record in STEEP.records():
        writer.write(record)
    writer.close()
    assert fit([tmp_path], (VanishingGradient(),))[0].share < VanishingGradient().share
    assert [finding.kind for finding in gradwatch.check(tmp_path, [VanishingGradient()])] == ["vanishing_gradient"]


def test_a_share_that_ends_at_one_is_moved_towards_it():
    sparse = Example({("relu", "activation"): [0.1] * 40}, shares={("relu", "dead"): [0.9] * 40})
    (dead,) = fit([history_of(sparse)], [gradwatch.detectors.DeadUnits()])
    assert 0.9 < dead.share < 1


def test_fit_cannot_learn_from_a_sick_run():
    broken = Example({("fc.weight", "parameter_grad"): [1.0, float("inf")]})
    with pytest.raises(InvalidSetting, match="NonFinite speaks about one of the runs"):
        fit([history_of(broken)])
    with pytest.raises(InvalidSetting, match="at least one healthy run"):
        fit([])
