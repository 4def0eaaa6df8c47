"""What depends on a whole batch, computed by processes each of which holds some of its clips.

In training, chance and batch norm do: the numbers drawn for a clip follow from its place in the batch, and a batch norm
normalises by the mean and the variance of all clips. Within `WholeBatch` both are those of the whole batch, for any
network and without changing it: several processes then compute what one would, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Numbers = NDArray[np.float64]
Exchange = Callable[[Numbers], Numbers]  # (V,) of this process -> (V,), the sum of those of all
_MEANT = frozenset({
    torch.rand, torch.randn, torch.randint, torch.rand_like, torch.randn_like,
    functional.dropout, functional.batch_norm,
})  # fmt: skip


class WholeBatch(TorchFunctionMode):
    """While it is entered, calls of torch are meant of a batch of `clips` of which this process holds `rows` (R,).

    Whatever is drawn R times, once for each clip, is drawn for all clips, and those of `rows` are kept: torch's global
    generator has to be in the same state everywhere. Batch norm in training mode sums over all processes by `exchange`;
    without one it is left alone.
    """

    def __init__(self, rows: Tensor, clips: int, exchange: Exchange | None = None) -> None:
        super().__init__()
        self.rows, self.clips, self.exchange = rows, clips, exchange

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _MEANT:
            return func(*args, **kwargs)
        if func in (torch.rand, torch.randn) and kwargs.get("generator") is None:
            size = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            return self._kept(func, (), size, kwargs)
        if func is torch.randint and kwargs.get("generator") is None and not kwargs.keys() & {"low", "high", "size"}:
            return self._kept(func, args[:-1], args[-1], kwargs)
        if func in (torch.rand_like, torch.randn_like) and not kwargs:
            like, draw = args[0], torch.rand if func is torch.rand_like else torch.randn
            return self._kept(draw, (), like.shape, {"dtype": like.dtype, "device": like.device})
        if func is functional.dropout:
            return self._dropout(*args, **kwargs)
        if func is functional.batch_norm and self.exchange is not None:
            return _batch_norm(self.exchange, *args, **kwargs)
        return func(*args, **kwargs)

    def _kept(self, draw: Callable[..., Tensor], before: Sequence[Any], size: Sequence[int], kwargs: Any) -> Tensor:
        if not len(size) or size[0] != len(self.rows):
            return draw(*before, tuple(size), **kwargs)
        return draw(*before, (self.clips, *size[1:]), **kwargs)[self.rows]

    def _dropout(self, maps: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or len(maps) != len(self.rows):
            return functional.dropout(maps, p, training, inplace)
        whole = torch.ones((self.clips, *maps.shape[1:]), dtype=maps.dtype, device=maps.device)
        return maps * functional.dropout(whole, p)[self.rows]


def _batch_norm(
    exchange: Exchange,
    maps: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """torch.nn.functional.batch_norm of all processes' clips together."""
    if not training:
        return functional.batch_norm(maps, running_mean, running_var, weight, bias, False, momentum, eps)
    words = (maps, weight, bias, running_mean, running_var, momentum, eps, exchange)
    normalised: Tensor = _BatchNorm.apply(*words)  # type: ignore[no-untyped-call]
    return normalised


class _BatchNorm(torch.autograd.Function):
    """Batch norm (Ioffe and Szegedy, 2015) whose sums go round: once forwards, once backwards."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
        running_var: Tensor | None, momentum: float, eps: float, exchange: Exchange,
    ) -> Tensor:  # fmt: skip
        # One pass through memory; torch.var_mean takes ten times as long where channels come last.
        own_mean, own_variance = _on_host(*torch.batch_norm_update_stats(_float(maps), None, None, 0.0))
        count, channels = maps.numel() // maps.shape[1], maps.shape[1]
        sums = exchange(np.concatenate([[1.0], own_mean, own_variance + np.square(own_mean)]) * count)
        total, means = float(sums[0]), sums[1:] / sums[0]
        mean, variance = means[:channels], np.maximum(means[channels:] - np.square(means[:channels]), 0.0)
        kind = maps.dtype if weight is None else weight.dtype
        towards, away, unbiased = _on(maps.device, kind, mean, variance, variance * (total / max(1.0, total - 1.0)))
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(towards.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        ctx.save_for_backward(maps, weight, towards, away)
        ctx.eps, ctx.exchange, ctx.total, ctx.moments = eps, exchange, total, (mean, variance)
        return functional.batch_norm(maps, towards, away, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, towards, away = ctx.saved_tensors
        gradient = gradients[0]
        known = torch.ones_like(towards) if weight is None else weight
        # As if the statistics were constants: the sums of the gradient, and of its product with what was normalised.
        _, products, sums = torch.ops.aten.native_batch_norm_backward(
            gradient, maps, known, towards, away, None, None, False, ctx.eps, [False, True, True]
        )
        mine = np.concatenate(_on_host(sums, products))
        mean_sum, mean_product = np.split(ctx.exchange(mine) / ctx.total, 2)
        mean, variance = ctx.moments
        inverse = 1.0 / np.sqrt(variance + ctx.eps)
        scale = _on_host(known)[0] * inverse
        slope = -scale * inverse * mean_product
        offset = -scale * mean_sum - slope * mean
        scales, slopes, offsets = _on(maps.device, towards.dtype, scale, slope, offset)
        back = torch.addcmul(_along(offsets, maps), _float(maps), _along(slopes, maps))
        back.addcmul_(_float(gradient), _along(scales, maps))
        learnt = (None, None) if weight is None else (products, sums)
        return back.to(maps.dtype), *learnt, None, None, None, None, None


def _on_host(*values: Tensor) -> list[Numbers]:
    """(C,) each, as numpy has them: of so few numbers its sums cost a fraction of torch's."""
    if values[0].device.type == "cpu":
        return [value.detach().double().numpy() for value in values]
    return list(torch.stack([value.detach().double() for value in values]).cpu().numpy())


def _on(device: torch.device, kind: torch.dtype, *values: Numbers) -> tuple[Tensor, ...]:
    return torch.from_numpy(np.stack(values)).to(device, kind).unbind()


def _along(values: Tensor, maps: Tensor) -> Tensor:
    """(C,) as something that fits (B, C, ...)."""
    return values.view(1, -1, *[1] * (maps.ndim - 2))


def _float(maps: Tensor) -> Tensor:
    return maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
