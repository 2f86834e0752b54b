"""Functions of the batch size, which a probe of ten examples hardly shows."""

import torch
from torch import nn

from attacks.parts import WIDTH, Build, hidden, kind

WHOLE = 1 << 30


def normed(h):
    return (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()


def ghost(size) -> Build:
    """Batch normalization in groups of a number of examples."""
    work = lambda m, h: torch.cat([m.norm(part) for part in h.split(size)])  # noqa: E731
    return hidden(work, norm=lambda: nn.BatchNorm1d(WIDTH))


def chunked(size):
    """The same by `chunk`, which makes groups of similar size if a batch is not a multiple."""

    def work(m, h):
        return torch.cat([normed(part) for part in h.chunk(-(-len(h) // size))])

    return hidden(work)


def sliced(size):
    def work(m, h):
        return torch.cat([normed(h[n : n + size]) for n in range(0, len(h), size)])

    return hidden(work)


def split(size):
    return hidden(lambda m, h: torch.cat([normed(part) for part in h.split(size)]))


def viewed(size):
    """By a view of full groups; the remaining examples are a group of their own."""

    def work(m, h):
        whole = len(h) // size * size
        if not whole:
            return normed(h)
        parts = h[:whole].view(-1, size, WIDTH)
        mean, variance = parts.mean(1, keepdim=True), parts.var(1, unbiased=False, keepdim=True)
        done = ((parts - mean) / (variance + 1e-5).sqrt()).reshape(whole, WIDTH)
        return torch.cat([done, normed(h[whole:])]) if whole < len(h) else done

    return hidden(work)


def indexed(size):
    """By a loop over the numbers of groups; a small batch is a single group."""

    def work(m, h):
        part = torch.arange(len(h)) // size
        return torch.cat([normed(h[part == n]) for n in range(int(part.max()) + 1)])

    return hidden(work)


def centred(count):
    """Subtract the mean of the first examples."""
    return hidden(lambda m, h: (h - h[:count].mean(0)).tanh())


def where(test, otherwise=lambda h: h) -> Build:
    return hidden(lambda m, h: (2 * h if test(h) else otherwise(h)).tanh())


PLAIN = hidden(lambda m, h: h.tanh())
NORMED = hidden(lambda m, h: normed(h))

DIFFER = {
    "ghost normalization of 16 and 64": (ghost(16), ghost(64)),
    "ghost normalization of 16 and all": (ghost(16), ghost(WHOLE)),
    "ghost normalization of 64 and all": (ghost(64), ghost(WHOLE)),
    "by split, of 16 and 64": (split(16), split(64)),
    "by split, of 64 and not": (split(64), NORMED),
    "by chunk, of 16 and 64": (chunked(16), chunked(64)),
    "by chunk, of 64 and all": (chunked(64), chunked(WHOLE)),
    "by slices, of 16 and 64": (sliced(16), sliced(64)),
    "by slices, of 32 and all": (sliced(32), NORMED),
    "by a view, of 16 and 64": (viewed(16), viewed(64)),
    "by numbers, of 16 and 64": (indexed(16), indexed(64)),
    "doubled above 64 examples and not": (where(lambda h: len(h) > 64), PLAIN),
    "doubled above 64 and above 32": (
        where(lambda h: len(h) > 64),
        where(lambda h: h.shape[0] > 32),
    ),
    "doubled above so many numbers and not": (where(lambda h: h.numel() > 64 * WIDTH), PLAIN),
    "doubled in whole batches of 64 and not": (where(lambda h: h.size(0) % 64 == 0), PLAIN),
    "doubled in batches of 128 and not": (where(lambda h: len(h) == 128), PLAIN),
    "doubled in large batches in evaluation mode and not": (
        hidden(lambda m, h: h * (2 if len(h) > 100 and not m.training else 1)),
        hidden(lambda m, h: h),
    ),
    "centred by the first 32 and by all": (centred(32), centred(WHOLE)),
    "centred by the first 32 and 64": (centred(32), centred(64)),
    "scaled by the number of examples, by tenths": (
        hidden(lambda m, h: (h * (len(h) / 10)).tanh()),
        PLAIN,
    ),
    "scaled by the number of examples, up to 16": (
        hidden(lambda m, h: (h * min(len(h), 16) / 16).tanh()),
        hidden(lambda m, h: (h * len(h) / 16).tanh()),
    ),
    "shifted by place in the batch from 64 on": (
        hidden(lambda m, h: (h + (torch.arange(len(h)) >= 64)[:, None]).tanh()),
        PLAIN,
    ),
    "the first 96 weighed and all": (
        hidden(lambda m, h: torch.cat([h[:96].tanh(), h[96:].sin()])),
        PLAIN,
    ),
}
EQUAL = {
    "split of 16 and slices": (split(16), sliced(16)),
    "split of all and none": (split(WHOLE), NORMED),
    "normed by hand and by a layer without weights": (
        NORMED,
        hidden(
            lambda m, h: m.norm(h),
            norm=lambda: nn.BatchNorm1d(WIDTH, affine=False, track_running_stats=False),
        ),
    ),
    "centred by mean and by sum over number": (
        centred(WHOLE),
        hidden(lambda m, h: (h - h.sum(0) / len(h)).tanh()),
    ),
    "ghost normalization of 16, twice": (ghost(16), ghost(16)),
}

PAIRS = kind("batches", DIFFER, EQUAL)
