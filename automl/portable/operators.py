"""The operations that a program of an export may call; none has effects beyond tensors."""

import functools
import math
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from .sizes import bounded

_NAMES = """
abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not
bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min clip copysign cos cosh deg2rad
detach detach_ digamma div divide elu eq erf erfc erfinv exp exp2 expm1 fill fill_ floor
floor_divide fmax fmin fmod frac ge gelu glu greater greater_equal gt hardshrink hardsigmoid
hardswish hardtanh heaviside hypot isfinite isinf isnan le leaky_relu lerp less less_equal
lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not
logical_or logical_xor logit lt maximum minimum mish mul multiply nan_to_num ne neg negative
nextafter not_equal pow prelu rad2deg reciprocal relu relu6 remainder rrelu round rsqrt rsub
selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink sqrt square sub subtract
tan tanh threshold trunc true_divide where xlogy zero zero_ masked_fill masked_scatter

all amax amin aminmax any argmax argmin argsort bincount bucketize count_nonzero cummax
cummin cumprod cumsum diff dist histc kthvalue logcumsumexp logsumexp max mean median min
mode msort nanmean nanmedian nansum nonzero norm prod quantile nanquantile searchsorted sort
std std_mean sum topk trace unique_consecutive var var_mean
linalg_vector_norm linalg_matrix_norm linalg_norm

addbmm addmm addmv addr baddbmm bilinear bmm chain_matmul cross cdist cosine_similarity dot
einsum inner kron linalg_cross linalg_det linalg_inv linalg_matmul linalg_multi_dot
linalg_solve linear matmul mm mv outer pairwise_distance pdist tensordot vdot
linalg_matrix_exp matrix_exp linalg_matrix_power linalg_qr linalg_svd linalg_svdvals
linalg_eigh linalg_eigvalsh linalg_cholesky linalg_slogdet linalg_vecdot

adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d conv1d conv2d
conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution im2col col2im
max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
max_pool3d_with_indices max_unpool2d max_unpool3d unfold

alpha_dropout batch_norm dropout embedding feature_alpha_dropout
feature_dropout group_norm gru instance_norm layer_norm log_softmax
lstm lstm_cell gru_cell
one_hot rms_norm rnn_relu rnn_tanh rnn_relu_cell rnn_tanh_cell
scaled_dot_product_attention softmax special_erf special_expit special_log_softmax
special_logsumexp special_softmax special_xlogy renorm

affine_grid_generator channel_shuffle constant_pad_nd grid_sampler grid_sampler_2d
grid_sampler_3d pad pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d
reflection_pad3d replication_pad1d replication_pad2d replication_pad3d upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d

adjoint alias as_strided atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors
broadcast_to cartesian_prod cat chunk clone column_stack combinations concat concatenate
contiguous copy copy_ diag diag_embed diagonal dsplit dstack expand expand_as flatten flip
fliplr flipud gather hsplit hstack index index_add index_copy index_fill index_put
index_select lift_fresh_copy masked_select meshgrid moveaxis movedim mT narrow
narrow_copy new_full new_ones new_zeros numpy_T permute positive ravel repeat
repeat_interleave reshape reshape_as roll rot90 row_stack scatter scatter_add
scatter_reduce select select_scatter slice slice_scatter split split_with_sizes squeeze
stack swapaxes swapdims t take take_along_dim tensor_split tile transpose tril triu
tril_indices triu_indices unbind unflatten unsqueeze view view_as vsplit vstack


arange eye full full_like lift_fresh linspace logspace ones ones_like scalar_tensor zeros
zeros_like bernoulli normal normal_ rand rand_like randint randint_like randn randn_like
randperm uniform_ uniform bartlett_window blackman_window hamming_window hann_window vander

_to_copy to type_as

angle complex conj conj_physical fft_fft fft_fft2 fft_fftn fft_fftshift fft_hfft fft_ifft
fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft
fft_rfft2 fft_rfftn imag polar real resolve_conj resolve_neg stft istft view_as_complex
view_as_real

sym_numel sym_size sym_stride sym_storage_offset
_assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size
"""
ATEN = frozenset(_NAMES.split())
"""Names of allowed ATen operations; their in-place variants, with `_`, are allowed, too.

Deliberately excluded are operations that read or create files (`from_file`), resize or swap a
tensor's memory, return uninitialized memory (`empty`), do not check shapes or indices
(`_reshape_alias`, `embedding_bag`), or print.
"""

_LARGEST = 2**63
_UNCHECKED = ("gru.data", "lstm.data", "rnn_relu.data", "rnn_tanh.data", "view.dtype")
"""Overloads that do not check the lengths of packed sequences, or accept any byte as a boolean."""
_DIVISIONS = ("div", "divide", "floor_divide", "fmod", "remainder")


# Arithmetic on sizes.
def _of_numbers(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Restrict an operation to numbers in the range of a size; text and lists are errors."""

    @functools.wraps(compute)
    def computed(*values: Any) -> Any:
        result = compute(*map(_number, values))
        return _number(result)

    return computed


def _number(value: Any) -> Any:
    if not isinstance(value, int | float) or (
        isinstance(value, int) and not -_LARGEST <= value < _LARGEST
    ):
        raise ValueError("it computes sizes from values that are not 64-bit numbers")
    return value


_NUMBERS: dict[str, Callable[..., Any]] = {
    name: _of_numbers(compute)
    for name, compute in {
        **{
            f"_operator.{name}": getattr(operator, name)
            for name in (
                *("add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "pos"),
                *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_"),
            )
        },
        "math.trunc": math.trunc,
        "torch.sym_int": int,
        "torch.sym_float": float,
        "torch.sym_not": operator.not_,
        "torch.sym_max": max,
        "torch.sym_min": min,
        "torch.sym_sqrt": math.sqrt,
        "torch.sym_ite": lambda condition, then, otherwise: then if condition else otherwise,
    }.items()
}


# Operations whose arguments torch does not check.
def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Compute weight norm from plain operations; torch's kernel does not check the size of `g`."""
    norms = torch.norm_except_dim(v, 2, dim)
    if g.shape != norms.shape:
        raise ValueError(f"expected {list(norms.shape)} magnitudes, got {list(g.shape)}")
    return v * (g / norms)


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **settings: Any) -> Tensor:
    """Check shapes first; torch's kernel assumes that keys and values match."""
    if key.shape[:-1] != value.shape[:-1] or query.shape[-1:] != key.shape[-1:]:
        raise ValueError("its queries, keys and values have mismatched shapes")
    return torch.ops.aten.scaled_dot_product_attention.default(  # type: ignore[no-any-return]
        query, key, value, *rest, **settings
    )


def _recurrent(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Run recurrent layers without oneDNN, whose kernel does not check the shapes of weights."""

    @functools.wraps(compute)
    def computed(
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        *rest: Any,
        **settings: Any,
    ) -> Any:
        states = [hx] if isinstance(hx, Tensor) else hx
        if num_layers < 1 or any(each.dim() != 3 for each in (input, *states)):
            raise ValueError("a recurrent module has the wrong layers or states")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a setting of another device
            with torch.backends.mkldnn.flags(enabled=False):
                return compute(input, hx, params, has_biases, num_layers, *rest, **settings)

    return computed


def _sampled(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """Check modes first; torch returns uninitialized memory for an unknown mode."""
    if not 0 <= interpolation_mode <= 2 or not 0 <= padding_mode <= 2:
        raise ValueError("it samples a grid in an unknown mode")
    return torch.grid_sampler(input, grid, interpolation_mode, padding_mode, align_corners)


def _divided(divide: Callable[..., Any]) -> Callable[..., Any]:
    """Guard a division against the one integer quotient that crashes the process."""

    @functools.wraps(divide)
    def divided(self: Any, other: Any, **settings: Any) -> Any:
        kind = torch.result_type(self, other)
        if not (kind.is_floating_point or kind.is_complex or kind == torch.bool):
            above, below = (torch.as_tensor(each).to(kind) for each in (self, other))
            if (below == -1).any() and (above == torch.iinfo(kind).min).any():
                raise ValueError(f"it divides the smallest {kind} by -1")
        return divide(self, other, **settings)

    return divided


_CHECKED: dict[str, Callable[..., Any]] = {
    "_weight_norm.default": _weight_norm,
    "scaled_dot_product_attention.default": _attention,
    **{
        f"{name}.input": _recurrent(getattr(torch.ops.aten, name).input)
        for name in ("gru", "lstm", "rnn_relu", "rnn_tanh")
    },
    **dict.fromkeys(
        ("grid_sampler.default", "grid_sampler_2d.default", "grid_sampler_3d.default"), _sampled
    ),
}


def allowed(target: str) -> Callable[..., Any]:
    """Return the function with this name in a program.

    Raises:
        ValueError: Programs may not call it.
    """
    if (function := _NUMBERS.get(target)) is not None:
        return function
    if match := re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target):
        name, overload = match.groups()
        if (function := _CHECKED.get(f"{name}.{overload}")) is not None:
            return function
        if (found := _operation(name, overload)) is not None:
            return _divided(found) if name.removesuffix("_") in _DIVISIONS else found
    raise ValueError(f"it calls {target[:100]!r}, which exports may not call")


def _operation(name: str, overload: str) -> Callable[..., Any] | None:
    """Return an allowed operation of torch; None if it is not allowed."""
    packet = getattr(torch.ops.aten, name, None)
    if not (name in ATEN or name.removesuffix("_") in ATEN) or packet is None:
        return None
    if overload not in packet.overloads() or f"{name}.{overload}" in _UNCHECKED:
        return None
    found: OpOverload = getattr(packet, overload)
    if overload.startswith("prim_") or not _is_of_tensors(name, found):
        return None
    return None if any(map(_is_given_to_write, found._schema.arguments)) else _typed(found)


def _is_of_tensors(name: str, operation: OpOverload) -> bool:
    """Return whether an operation returns tensors; TorchScript operations on lists share names."""
    gives = [str(result.type) for result in operation._schema.returns]
    return name.startswith(("sym_", "_assert")) or any("Tensor" in kind for kind in gives)


def _typed(operation: OpOverload) -> Callable[..., Any]:
    """Guard an operation against integer codes in place of dtypes, layouts and memory formats."""
    arguments = operation._schema.arguments
    coded = [
        (place, argument.name)
        for place, argument in enumerate(arguments)
        if str(argument.type) != str(argument.real_type)
        and re.search("ScalarType|Layout|MemoryFormat", str(argument.real_type))
    ]
    function = bounded(operation)
    if not coded:
        return function

    @functools.wraps(operation)
    def typed(*args: Any, **settings: Any) -> Any:
        for place, name in coded:
            given = args[place] if place < len(args) else settings.get(name)
            if isinstance(given, int):  # torch uses it as an index without a bounds check
                raise ValueError(f"it passes a number for {name}")
        return function(*args, **settings)

    return typed


def _is_given_to_write(argument: torch.Argument) -> bool:
    """Return whether an argument receives the result: torch would resize its memory."""
    return bool(argument.kwarg_only and argument.alias_info and argument.alias_info.is_write)
