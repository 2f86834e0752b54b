"""ConvMixers are valid candidates for images, and leave the expected decisions open."""

import automl
import numpy as np
from automl.testing import check_space

from automl_example_plugin.convmixer import convmixer


def test_it_passes_the_space_suite() -> None:
    targets = np.arange(60) % 3
    images = np.random.default_rng(0).normal(size=(60, 1, 8, 8)) + targets[:, None, None, None]
    task = automl.Classification.from_arrays("stripes", images, targets)
    assert check_space(convmixer, task, trials=5) == {"activation", "lr"}
