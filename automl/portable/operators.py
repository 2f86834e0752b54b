"""The operations that a program of an export may call: none of them reaches beyond tensors."""

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch

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

alpha_dropout batch_norm dropout embedding embedding_bag feature_alpha_dropout
feature_dropout group_norm gru instance_norm layer_norm log_softmax
lstm lstm_cell gru_cell
one_hot rms_norm rnn_relu rnn_tanh rnn_relu_cell rnn_tanh_cell
scaled_dot_product_attention softmax special_erf special_expit special_log_softmax
special_logsumexp special_softmax special_xlogy renorm
_weight_norm

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
"""Names of ATen's operations; those that change a tensor in place, with `_`, are allowed alike.

Left out on purpose are the ones that read or make files (`from_file`), resize or swap the memory of
a tensor, leave memory as it is (`empty`), trust shapes unseen (`_reshape_alias`), or print.
"""

_NUMBERS: dict[str, Callable[..., Any]] = {
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
}
"""What programs compute of sizes."""


def allowed(target: str) -> Callable[..., Any]:
    """The function of that name in a program.

    Raises:
        ValueError: it is not one of those that a program may call.
    """
    if (function := _NUMBERS.get(target)) is not None:
        return function
    if match := re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target):
        name, overload = match.groups()
        if (name in ATEN or name.removesuffix("_") in ATEN) and not overload.endswith("out"):
            packet = getattr(torch.ops.aten, name, None)
            if packet is not None and overload in packet.overloads():
                return getattr(packet, overload)  # type: ignore[no-any-return]
    raise ValueError(f"it calls {target[:100]!r}, which no program of an export may")
