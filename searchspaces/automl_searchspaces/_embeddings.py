"""Embeddings of a table's categories and numbers, shared by the spaces for tables.

Sources: C. Guo, F. Berkhahn: Entity Embeddings of Categorical Variables, arXiv 1604.06737;
Y. Gorishniy, I. Rubachev, A. Babenko: On Embeddings for Numerical Features in Tabular Deep
Learning, arXiv 2203.05556 (periodic, linear, ReLU).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from automl import Algebra, Operation, declare

Blocks = Sequence[Sequence[int]]
"""Start and end of each block of inputs that encodes one category; all others are numbers."""


def numbers_among(width: int, blocks: Blocks) -> list[int]:
    """Return the columns outside of all blocks, which are numbers."""
    inside = {column for start, stop in blocks for column in range(start, stop)}
    return [column for column in range(width) if column not in inside]


class EmbedCategories(nn.Module):
    """Replaces each block of one-hot inputs by an embedding.

    Inputs [n, width]; outputs [n, numbers + blocks * size], numbers first. The embedding of a
    block is never larger than the block.

    Args:
        width: The number of inputs.
        blocks: The blocks of one-hot inputs.
        size: The size of an embedding.
    """

    def __init__(self, width: int, blocks: Blocks, size: int) -> None:
        super().__init__()
        numbers = numbers_among(width, blocks)
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


class EmbedNumbers(nn.Module):
    """Embeds each number by waves of trained frequencies, a linear layer of its own and ReLU.

    Inputs [n, width]; outputs [n, numbers * size].

    Args:
        width: The number of inputs.
        blocks: The blocks of one-hot inputs, which are ignored.
        frequencies: The number of frequencies for each number.
        scale: The initial standard deviation of the frequencies. A large one separates close
            numbers, a small one is nearly linear.
        size: The size of an embedding.
    """

    def __init__(
        self, width: int, blocks: Blocks, frequencies: int, scale: float, size: int
    ) -> None:
        super().__init__()
        numbers = numbers_among(width, blocks)
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.int64))
        # The scale is a separate factor, so that it matters for any weights of the frequencies.
        self.scale = scale
        self.frequencies = nn.Parameter(torch.randn(len(numbers), frequencies))
        bound = 1 / math.sqrt(2 * frequencies)
        self.weight = nn.Parameter(torch.empty(len(numbers), 2 * frequencies, size))
        self.bias = nn.Parameter(torch.empty(len(numbers), size))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    numbers: Tensor

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * self.scale * self.frequencies * x[:, self.numbers, None]
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        embedded = torch.einsum("bnf,nfs->bns", waves, self.weight) + self.bias
        return embedded.relu().flatten(1)


def _categories_shape(
    shapes: Sequence[tuple[int, ...]], blocks: Blocks, size: int
) -> tuple[int, ...]:
    (width,) = shapes[0]
    widths = [stop - start for start, stop in blocks]
    return (width - sum(widths) + sum(min(size, each) for each in widths),)


def _numbers_shape(
    shapes: Sequence[tuple[int, ...]], blocks: Blocks, frequencies: int, scale: float, size: int
) -> tuple[int, ...]:
    return (len(numbers_among(shapes[0][0], blocks)) * size,)


declare(
    Operation(
        "embed_categories",
        lambda shapes, blocks, size: EmbedCategories(shapes[0][0], blocks, size),
        _categories_shape,
        algebra=Algebra(parametric=True, linear=True, zero_preserving=True),
    )
)
declare(
    Operation(
        "embed_numbers",
        lambda shapes, **options: EmbedNumbers(shapes[0][0], **options),
        _numbers_shape,
        algebra=Algebra(parametric=True),
    )
)
