"""ConvMixers are sound candidates on images, and say what may be left open."""

import automl
import numpy as np
from automl.testing import check_space

from automl_example_plugin.convmixer import convmixer


def test_it_keeps_what_a_space_promises() -> None:
    targets = np.arange(60) % 3
    images = np.random.default_rng(0).normal(size=(60, 1, 8, 8)) + targets[:, None, None, None]
    task = automl.Classification.from_arrays("stripes", images, targets)
    assert check_space(convmixer, task, trials=5) == {"activation", "lr"}
