"""The hierarchy that is drawn is the one that there is."""

import re

import pytest

from gradwatch import Finding, errors


def drawn():
    """(name, direct parents) of every line of the drawing."""
    for line in filter(None, errors.__doc__.splitlines()[1:]):
        found = re.match(r"(?P<branch>[├└]── )?(?P<name>\w+)(\((?P<builtin>\w+)\))? +\S", line)
        assert found, f"not a line of the drawing: {line!r}"
        parents = {"GradWatchError"} if found["branch"] else set()
        yield found["name"], parents | ({found["builtin"]} if found["builtin"] else set())


def defined():
    return {
        name: {base.__name__ for base in value.__bases__}
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }


def test_the_drawing_shows_every_exception_and_its_parents():
    assert dict(drawn()) | {"GradWatchError": {"Exception"}} == defined()
    assert [name for name, _ in drawn()] == list(defined())


def test_every_exception_says_what_it_means():
    assert all(getattr(errors, name).__doc__.splitlines()[0].endswith(".") for name in defined())


@pytest.mark.parametrize("name", [name for name, parents in drawn() if "GradWatchError" in parents])
def test_each_error_is_caught_by_the_common_base(name):
    finding = Finding("non_finite", "fc1", 3, 4, "critical", message="NaN in the output.")
    with pytest.raises(errors.GradWatchError):
        raise getattr(errors, name)(finding if name == "UnhealthyTraining" else "what happened")


def test_an_unhealthy_training_names_layer_step_and_sight():
    finding = Finding("non_finite", "fc1", 3, 4, "critical", message="NaN in the output.")
    error = errors.UnhealthyTraining(finding)
    assert str(error) == "non_finite at 'fc1', step 3: NaN in the output."
    assert error.finding is finding
