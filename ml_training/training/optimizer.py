"""Adam and AdamW as torch.optim computes them when fused, to the bit, and with its form of state.

torch.optim loads torch's compiler before the first step, which takes as long as everything else that a training from
cached features does until then. The steps themselves are one operation of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Adam:
    """Adam (Kingma and Ba, 2015); `decoupled`, its weight decay is AdamW's (Loshchilov and Hutter, 2019).

    A group of `param_groups` names its parameters, "lr" and "weight_decay". A gradient scaler may leave the inverse of
    its scale and what it found to the step, which is then skipped on the device, where no one waits for it.
    """

    _step_supports_amp_scaling = True  # as torch.amp.GradScaler asks
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def __init__(self, groups: Sequence[Mapping[str, Any]], lr: float, decoupled: bool) -> None:
        self.param_groups = [{"lr": lr, **group, "params": list(group["params"])} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._apply = torch._fused_adamw_ if decoupled else torch._fused_adam_

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self._parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            states = [self._state(parameter) for parameter in moved]
            means, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
            torch._foreach_add_(steps, 1)
            self._apply(
                moved, [parameter.grad for parameter in moved], means, squares, [], steps,
                lr=group["lr"], beta1=BETAS[0], beta2=BETAS[1], weight_decay=group["weight_decay"], eps=EPSILON,
                amsgrad=False, maximize=False, grad_scale=getattr(self, "grad_scale", None), found_inf=found_inf,
            )  # fmt: skip
            if found_inf is not None:
                torch._foreach_sub_(steps, [found_inf.to(steps[0].device)] * len(steps))

    def state_dict(self) -> dict[str, Any]:
        """Numbers in the place of parameters, as torch.optim has them."""
        number = {parameter: i for i, parameter in enumerate(self._parameters())}
        return {
            "state": {number[parameter]: dict(state) for parameter, state in self.state.items()},
            "param_groups": [{**g, "params": [number[p] for p in g["params"]]} for g in self.param_groups],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What state_dict gave, or that of torch.optim. Raises ValueError where it is of other parameters."""
        parameters = self._parameters()
        sizes = [len(group["params"]) for group in state["param_groups"]]
        if sizes != [len(group["params"]) for group in self.param_groups]:
            raise ValueError(f"the state is of groups of {sizes} parameters")
        loaded: dict[Tensor, dict[str, Tensor]] = {}
        for number, values in state["state"].items():
            parameter = parameters[number]
            if values["exp_avg"].shape != parameter.shape:
                raise ValueError(f"the state of parameter {number} is {tuple(values['exp_avg'].shape)}")
            place = parameter.device
            loaded[parameter] = {
                "step": values["step"].to(place, torch.float32, copy=True),
                # Laid out as the parameter is: the fused operation walks through both in the order of memory.
                **{name: torch.empty_like(parameter).copy_(values[name]) for name in ("exp_avg", "exp_avg_sq")},
            }
        self.state = loaded
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group |= {name: saved[name] for name in ("lr", "weight_decay")}

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        return self.state[parameter]
