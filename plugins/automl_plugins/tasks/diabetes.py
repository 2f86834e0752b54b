"""Diabetes: the progression of the disease in 442 patients, bundled with scikit-learn.

Source: B. Efron, T. Hastie, I. Johnstone, R. Tibshirani: Least Angle Regression, Annals of
Statistics 32(2), 2004.
"""

from collections.abc import Callable, Mapping

from automl import Regression, Task, hookimpl


def diabetes(*, validation: float = 0.2, test: float = 0.2, seed: int = 0) -> Regression:
    """Predict the progression after a year from 10 measurements; fast enough for many trials.

    Inputs [10] and the target [1] have mean 0 and deviation 1 over the training examples.

    Args:
        validation: The share of the 442 patients to validate on.
        test: The share of the 442 patients to test on.
        seed: The seed of the random split.
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
