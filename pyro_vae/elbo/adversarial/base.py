"""The base of the adversarial objectives: critics for any pair, their losses, and warnings of a game gone wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyro_vae.elbo.adversarial.critics import Critic
from pyro_vae.elbo.adversarial.draws import Drawn
from pyro_vae.elbo.adversarial.losses import GAMES, gradient_penalty, r1_penalty
from pyro_vae.elbo.adversarial.phases import Phase, PhasedELBO, warn_once
from pyro_vae.nets import lookup

__all__ = ["Adversarial"]


CHECK_EVERY = 500  # steps between checks of the running averages; a check waits for a GPU
WON_ACCURACY = 0.995  # fraction of (real, fake) pairs that a critic tells apart
COLLAPSED_SPREAD = 0.3  # spread of generated data against that of the data


class Adversarial(PhasedELBO):
    """A `PhasedELBO` with critics that tell "real" from "fake".

    A critic is made when it is first needed, for the shape of its input: data (one observed site in its own shape,
    several concatenated), latents (concatenated), or both. Training keeps running averages of each game, see `health`.
    It warns when a critic has won, when generated data have collapsed, and when a critic's weights are not finite.

    Args:
        game: The losses of critics and of what they judge, a name in `pv.elbo.adversarial.GAMES`: "non_saturating",
            "log_ratio" (what they judge minimizes an estimate of the log-ratio of densities), "least_squares", "hinge"
            or "wasserstein".
        critic: A function from the shape of one input to a network `(N, *shape) -> (N,)`. Default: `Critic`; with
            spectral normalization, `functools.partial(Critic, spectral=True)`. `VAEGAN` needs its method `features`.
        critic_steps: Updates of the critics in each step of the objective.
        critic_lr: Learning rate of the critics, as a factor on that of the optimizer.
        gradient_penalty: Weight of the penalty on a critic's gradient between real and fake input; 10 is usual.
        r1: Weight of the penalty on a critic's gradient at real input.
        condition: A function of the pair's arguments that gives `(N, C)`, one-hot labels for example. Critics see it
            next to their input, so they compare real and fake within each condition.
        average: If given, the decay of an average of the model's parameters, see `averaged`.

    Raises:
        ValueError: For negative penalties, or an unknown `game`.

    Reference: Goodfellow et al. 2014, arXiv 1406.2661; `GAMES` and the penalties name theirs.
    """

    watched: ClassVar[bool] = True  # whether to warn when a critic has won or samples have collapsed

    def __init__(
        self,
        num_particles: int = 1,
        *,
        game: str = "non_saturating",
        critic: Callable[[torch.Size], nn.Module] | None = None,
        critic_steps: int = 1,
        critic_lr: float = 1.0,
        gradient_penalty: float = 0.0,
        r1: float = 0.0,
        condition: Callable[..., Tensor] | None = None,
        average: float | None = None,
    ) -> None:
        super().__init__(num_particles, average)
        if gradient_penalty < 0 or r1 < 0:
            raise ValueError(f"penalties must be weights >= 0, got gradient_penalty={gradient_penalty} and r1={r1}")
        self.game = lookup(GAMES, game, "game")
        self.make_critic = Critic if critic is None else critic
        self.critic_steps, self.critic_lr = critic_steps, critic_lr
        self.gradient_penalty, self.r1, self.condition = gradient_penalty, r1, condition
        self._running_health: dict[str, Tensor] = {}
        self._steps = 0
        self._warned: set[str] = set()

    def critic_phase(self, loss: Callable[..., Tensor]) -> Phase:
        """The phase of all critics."""
        return Phase("critic", loss, ("critic/",), self.critic_steps, self.critic_lr)

    def critic(self, name: str, value: Tensor) -> nn.Module:
        """The critic called `name`, made for rows like those of `value` if it does not exist yet."""
        if name not in self.critics:
            made = self.make_critic(value.shape[1:])
            if not isinstance(made, nn.Module):
                raise TypeError(f"critic must be a function from a shape to an nn.Module, it gave {made!r}")
            self.critics[name] = made.to(value)
        return self.critics[name]

    def critic_logits(self, name: str, value: Tensor) -> Tensor:
        """The logits of a critic, `(N,)`; or `(N, M)` of one that judges M parts of a row, whose mean then counts."""
        logits: Tensor = self.critic(name, value)(value)
        if logits.shape[:1] != value.shape[:1] or logits.dim() > 2:
            raise ValueError(
                f"the critic {name!r} gave logits of shape {tuple(logits.shape)} for {len(value)} rows, "
                f"expected ({len(value)},): end it with .squeeze(-1)"
            )
        return logits

    def with_condition(self, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """`value` concatenated with the condition, if there is one."""
        if self.condition is None:
            return value
        condition = self.condition(*args, **kwargs).to(value)
        if condition.dim() != 2 or len(condition) != len(value):
            shape = tuple(condition.shape)
            raise ValueError(f"condition gave {shape}, expected ({len(value)}, C): one row for each datum")
        return torch.cat([value.flatten(1), condition], 1)

    def critic_loss(self, name: str, real: Tensor, *fakes: Tensor) -> Tensor:
        """Mean loss of a critic that has to tell `real` from each of `fakes`, with its penalties."""
        real = real.detach()
        above = self.critic_logits(name, real)
        loss = self.game.real(above).mean()
        for fake in fakes:
            below = self.critic_logits(name, fake.detach())
            loss = loss + self.game.fake(below).mean()
            if self.gradient_penalty:
                loss = loss + self.gradient_penalty * gradient_penalty(self.critics[name], real, fake)
        if self.r1:
            loss = loss + self.r1 * r1_penalty(self.critics[name], real)
        self._record_health(name, above, below, real, fakes[-1])
        return loss

    def health(self) -> dict[str, float]:
        """The state of each critic's game, averaged over about the last hundred steps.

        "accuracy/NAME" is the probability that the critic gives a real row a higher logit than a fake one. Near 0.5 it
        cannot tell them apart; at 1 it has won, and what it judges learns little from it. "spread/NAME" is the mean
        distance of two fake rows over that of two real ones: far below 1, the fake ones have collapsed.
        """
        return {name: float(value) for name, value in self._running_health.items()}

    @torch.no_grad()
    def _record_health(self, name: str, above: Tensor, below: Tensor, real: Tensor, fake: Tensor) -> None:
        found = {"accuracy": (above > below).to(above).mean(), "spread": _spread(fake) / _spread(real)}
        for key, value in found.items():
            # changed in place, since a compiled step writes to the same tensors
            average = self._running_health.setdefault(f"{key}/{name}", value.clone())
            # the spread of a single datum is not finite
            average.lerp_(torch.where(value.isfinite(), value, average), 0.01)

    def on_step(self, params: Mapping[str, Tensor]) -> None:
        super().on_step(params)
        self._steps += 1
        if self._steps % CHECK_EVERY == 0:
            for name in self.critics:
                self._check_critic(name)

    def _check_critic(self, name: str) -> None:
        accuracy, spread = (float(self._running_health[f"{key}/{name}"]) for key in ("accuracy", "spread"))
        if not all(bool(p.isfinite().all()) for p in self.critics[name].parameters()):
            warn_once(self._warned, f"{name} broken", f"the critic {name!r} has weights that are not finite: lower lr")
        elif self.watched and accuracy > WON_ACCURACY:
            warn_once(
                self._warned,
                f"{name} won",
                f"the critic {name!r} tells {accuracy:.1%} of the pairs apart after {self._steps} steps: what it "
                "judges learns little from it. Try a lower critic_lr, r1 > 0 or spectral normalization",
            )
        if self.watched and spread < COLLAPSED_SPREAD:
            warn_once(
                self._warned,
                f"{name} collapsed",
                f"mode collapse: what the critic {name!r} judges varies {spread:.2f} times as much as it should "
                f"after {self._steps} steps. Try an objective that reconstructs (VEEGAN, AAE), r1 > 0 or less lr",
            )


def total(mean: Tensor, drawn: Drawn) -> Tensor:
    """A mean over the batch as a sum over the data, the unit of all losses here."""
    return mean * drawn.plate.full_size


def _spread(rows: Tensor) -> Tensor:
    """Mean distance of a row to the next one."""
    return (rows - rows.roll(1, 0)).flatten(1).norm(dim=1).mean()
