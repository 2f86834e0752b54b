"""A linear softmax classifier, whose loss is convex: the place to study methods of tuning."""

from collections.abc import Callable, Mapping

import optuna

from automl import Candidate, Graph, Task, hookimpl
from automl_searchspaces._training import example_weights


def softmax(
    trial: optuna.trial.BaseTrial,
    task: Task,
    *,
    min_lr: float = 1e-3,
    max_lr: float = 1e-1,
    min_l2: float = 1e-6,
    max_l2: float = 1.0,
    weights: bool = False,
) -> Candidate:
    """A linear layer on the flattened inputs of any task with vector outputs.

    The L2 penalty and the weight of the training examples may be left open.

    Args:
        min_lr: The smallest learning rate.
        max_lr: The largest learning rate.
        min_l2: The smallest L2 penalty.
        max_l2: The largest L2 penalty.
        weights: Also decide on the weight of the training examples in the loss. Trainer
            `implicit` finds one for each example, see task `cleaning`.
    """
    graph = Graph()
    h = graph.add("flatten", graph.input("x", task.signature.input_shape))
    graph.output(graph.add("linear", h, features=task.signature.output_shape[0]))
    lr = trial.suggest_float("lr", min_lr, max_lr, log=True)
    l2 = trial.suggest_float("l2", min_l2, max_l2, log=True)
    chosen = example_weights(trial) if weights else {}
    return Candidate(graph, {"lr": lr, "l2": l2, **chosen})


@hookimpl
def register_spaces() -> Mapping[str, Callable[..., Candidate]]:
    return {"softmax": softmax}
