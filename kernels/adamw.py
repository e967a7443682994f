"""AdamW that learns in bfloat16: weights and moments are rounded stochastically, so that small updates are
not lost.

    g = scale grad                         m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
    p = p (1 - lr wd) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

A bfloat16 has 8 significant bits: next to 0.02 its neighbours lie 1.2e-4 apart, and an update of 5e-6, Adam's
usual size at that learning rate, is below half of that. Rounded to the nearest it is lost at every step, and
training that looks normal teaches nothing. Rounded up or down with probability in proportion to the distance,
it is kept on average.

Adding 16 random bits below the cut and then cutting does exactly that. The bits come from a stream that is
keyed by (seed, step, parameter), so that a resumed run rounds alike. Float32 parameters are updated by the
same code without rounding.

Bytes: 7 numbers a parameter (read p, g, m, v; write p, m, v), 14 in bfloat16 and 28 in float32. A tensor is
taken in slices that stay in the cache, so that the torch path moves little more.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

SLICE = 2**16


def round_stochastically(x: Tensor, bits: Tensor) -> Tensor:
    """float32 (n,) and random bits in [0, 65536) (n,) int32 -> bfloat16 (n,), unbiased.

    Non-finite values are cut instead: random bits added to a NaN can carry into its sign and make it -0.0.
    """
    raw = x.view(torch.int32)
    rounded = (raw + bits).bitwise_and_(-65536).view(torch.float32)
    # A value so close to the largest finite one that the carry overflows becomes infinite, as with rounding
    # to nearest.
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


def reference(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    scale: float,
    bits: Callable[[], Tensor],
) -> None:
    """One update of n numbers, in place in p, m and v. `bits` gives (n,) random bits; it is asked for
    bfloat16 alone."""
    beta1, beta2 = betas
    g32 = g.float() * scale
    m32 = m.float().lerp(g32, 1 - beta1)
    v32 = (v.float() * beta2).addcmul_(g32, g32, value=1 - beta2)
    denominator = v32.sqrt().mul_(1 / math.sqrt(1 - beta2**step)).add_(eps)
    p32 = (p.float() * (1 - lr * weight_decay)).addcdiv_(m32, denominator, value=-lr / (1 - beta1**step))
    for place, new in ((p, p32), (m, m32), (v, v32)):
        place.copy_(round_stochastically(new, bits()) if place.dtype == torch.bfloat16 else new)


class AdamW(torch.optim.Optimizer):
    """AdamW with decoupled weight decay, for float32 and (rounding stochastically) bfloat16 parameters.

    `step(grad_scale)` multiplies all gradients by `grad_scale` on the way, which is how the global norm is
    clipped without another pass. The learning rate is read at each step from `param_groups`.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "seed": seed}
        )

    @torch.no_grad()
    def step(self, closure: None = None, *, grad_scale: float = 1.0) -> None:
        """Update every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            for index, p in enumerate(group["params"]):
                if p.grad is not None:
                    self._update(p, index, group, grad_scale)

    def _update(self, p: Tensor, index: int, group: dict[str, Any], grad_scale: float) -> None:
        state = self.state[p]
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
        state["step"] += 1
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        generator = torch.Generator(p.device)
        # 64 bits of key: a million steps and sixteen million parameters of 2^20 seeds do not meet.
        generator.manual_seed(((group["seed"] << 44) ^ (state["step"] << 24) ^ index) & (2**63 - 1))
        flat = [x.view(-1) for x in (p, p.grad.contiguous(), state["m"], state["v"])]
        for pieces in zip(*(x.split(SLICE) for x in flat), strict=True):
            n = len(pieces[0])

            def bits(n: int = n) -> Tensor:
                return torch.randint(0, 65536, (n,), dtype=torch.int32, device=p.device, generator=generator)

            reference(*pieces, **options, step=state["step"], scale=grad_scale, bits=bits)
