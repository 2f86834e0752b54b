"""Networks for tables: embeddings of categories, then a residual perceptron.

Sources: C. Guo, F. Berkhahn: Entity Embeddings of Categorical Variables, arXiv 1604.06737;
Y. Gorishniy et al.: Revisiting Deep Learning Models for Tabular Data, arXiv 2106.11959.
"""

from collections.abc import Callable, Mapping, Sequence

import optuna
import torch
from torch import Tensor, nn

from automl import Algebra, Candidate, Graph, Operation, Task, declare, hookimpl
from automl_searchspaces._residual import residual
from automl_searchspaces._training import gradient_descent

Blocks = Sequence[Sequence[int]]


def tabular_mlp(
    trial: optuna.trial.BaseTrial,
    task: Task,
    *,
    max_embedding: int = 32,
    max_blocks: int = 4,
    min_width: int = 32,
    max_width: int = 256,
    max_dropout: float = 0.5,
    min_lr: float = 1e-4,
    max_lr: float = 1e-2,
) -> Candidate:
    """A residual perceptron on numbers and on an embedding of each category.

    For tasks made from tables; where no inputs encode categories it is `residual_mlp`.
    max_embedding: the most numbers for one category. The activation, the normalization and both
    dropout rates may be left open.
    """
    graph = Graph()
    h = graph.add("flatten", graph.input("x", task.signature.input_shape))
    if blocks := task.signature.blocks:
        size = trial.suggest_int("embedding", 2, max_embedding, log=True)
        h = graph.add("embed_categories", h, blocks=blocks, size=size)
    h = residual(
        graph,
        h,
        trial,
        max_blocks=max_blocks,
        min_width=min_width,
        max_width=max_width,
        max_dropout=max_dropout,
    )
    graph.output(graph.add("linear", h, features=task.signature.output_shape[0]))
    return Candidate(graph, gradient_descent(trial, min_lr, max_lr))


class EmbedCategories(nn.Module):
    """Puts an embedding in the place of each block of inputs that encodes one category.

    Inputs [n, width]; outputs [n, numbers + blocks * size], the numbers first. A block of few
    categories has an embedding no larger than itself.
    """

    def __init__(self, width: int, blocks: Blocks, size: int) -> None:
        super().__init__()
        inside = {column for start, stop in blocks for column in range(start, stop)}
        numbers = [column for column in range(width) if column not in inside]
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.int64))
        self.blocks = [(int(start), int(stop)) for start, stop in blocks]
        self.tables = nn.ModuleList(
            nn.Linear(stop - start, min(size, stop - start), bias=False)
            for start, stop in self.blocks
        )

    numbers: Tensor

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.blocks, self.tables, strict=True)
        parts = [table(x[:, start:stop]) for (start, stop), table in pairs]
        return torch.cat([x[:, self.numbers], *parts], 1)


def _embedded_shape(
    shapes: Sequence[tuple[int, ...]], blocks: Blocks, size: int
) -> tuple[int, ...]:
    (width,) = shapes[0]
    widths = [stop - start for start, stop in blocks]
    return (width - sum(widths) + sum(min(size, each) for each in widths),)


declare(
    Operation(
        "embed_categories",
        lambda shapes, blocks, size: EmbedCategories(shapes[0][0], blocks, size),
        _embedded_shape,
        algebra=Algebra(parametric=True, linear=True, zero_preserving=True),
    )
)


@hookimpl
def register_spaces() -> Mapping[str, Callable[..., Candidate]]:
    return {"tabular_mlp": tabular_mlp}
