"""Diabetes: how the disease went on in 442 patients, bundled with scikit-learn.

Source: B. Efron, T. Hastie, I. Johnstone, R. Tibshirani: Least Angle Regression, Annals of
Statistics 32(2), 2004.
"""

from collections.abc import Callable, Mapping

from automl import Regression, Task, hookimpl


def diabetes(*, validation: float = 0.2, test: float = 0.2, seed: int = 0) -> Regression:
    """The progression in a year from 10 measurements, small enough for thousands of trials.

    Inputs [10] and the target [1] have mean 0 and deviation 1 over the training part.
    validation, test: shares of the 442 patients; seed: of the split.
    """
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    return Regression.from_arrays(
        "diabetes",
        inputs,
        targets,
        validation=validation,
        test=test,
        seed=seed,
        standardize=True,
    )


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"diabetes": diabetes}
