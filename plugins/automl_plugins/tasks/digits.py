"""Digits: the 1,797 handwritten 8x8 digits that come with scikit-learn.

Source: E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from collections.abc import Callable, Mapping

from automl import Classification, Scaling, Task, hookimpl

_BRIGHTEST = 16.0


def digits(*, validation: float = 0.2, test: float = 0.2, seed: int = 0) -> Classification:
    """Ten classes of 8x8 images, small enough to search in a minute on one CPU core.

    Inputs are in [0, 1] and have shape [1, 8, 8].

    Args:
        validation: The share of the 1,797 images to validate on.
        test: The share of the 1,797 images to test on.
        seed: The seed of the random split, which keeps the classes in proportion.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return Classification.from_arrays(
        "digits",
        images.reshape(-1, 1, 8, 8),
        labels,
        validation=validation,
        test=test,
        seed=seed,
        scaling=Scaling((0.0,), (_BRIGHTEST,)),
    )


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"digits": digits}
