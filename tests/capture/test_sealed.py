"""A step that is over: what of it may be looked at, and when."""

import numpy as np

from gradwatch.capture.sealed import Sealed
from gradwatch.records import Site

SITES = (Site("fc.weight", "parameter_grad", "Linear", (2, 2)),)


class OnItsWay:
    """Measurements that are no numbers yet, as those on a GPU, until somebody has waited for them."""

    def __init__(self, **scalars):
        self._coming, self._scalars = scalars, {}

    def only_norms(self):
        self._scalars = self._coming
        return SITES, np.array([4.0]), [1.0]

    def scalars(self, name):
        return self._scalars.get(name, [])


def sealed(measured):
    return Sealed(3, None, ["fc.weight"], True, False, False, measured, None, None, 0, set())


def test_an_overflow_that_is_still_on_its_way_is_waited_for():
    assert sealed(OnItsWay(told=[0.5], overflow=[1.0])).light is None
    light = sealed(OnItsWay(told=[0.5], overflow=[0.0])).light
    assert (light.norms, light.loss) == ([1.0], 0.5)
