"""What the adversarial objectives share: critics of any pair, the game they play, and how it goes."""

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


LOOK_EVERY = 500  # steps between checks of what was noted, which wait for a GPU
WON = 0.995  # share of pairs that a critic tells apart
COLLAPSED = 0.3  # spread of generated data against that of the data


class Adversarial(PhasedELBO):
    """A `PhasedELBO` with critics that tell "real" from "fake".

    A critic is made when it is first needed, for what it is to look at: data (those of one observed site in their
    shape, several side by side), latents side by side, or both. How it goes is noted while training, see `health`, and
    a warning says when a critic has won, when generated data have collapsed and when a critic is not finite any more.

    Args:
        game: What is played: a name in `pv.elbo.adversarial.GAMES`: "non_saturating", "log_ratio" (an estimate of the
            log-ratio of the densities in the place of its bounded version), "least_squares", "hinge" or "wasserstein".
        critic: A function from the shape of one input to a network `(N, *shape) -> (N,)`. Default: `Critic`; with
            spectral normalization, `functools.partial(Critic, spectral=True)`. `VAEGAN` needs its method `features`.
        critic_steps: Steps of the critics in each step.
        critic_lr: Their learning rate, as a factor on that of the optimizer.
        gradient_penalty: Weight of the penalty on a critic's gradient between real and fake input; 10 is usual.
        r1: Weight of that on its gradient at real input.
        condition: A function of the pair's arguments that gives `(N, C)`, labels in one-hot form for one: critics see
            it beside what they judge, which makes the game one within each condition.
        average: If given, the decay of an average of the model's parameters, see `averaged`.
    """

    watched: ClassVar[bool] = True  # whether a critic that tells everything apart is a sign of trouble

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
        self._noted: dict[str, Tensor] = {}
        self._steps = 0
        self._said: set[str] = set()

    def critic_phase(self, loss: Callable[..., Tensor]) -> Phase:
        """The phase of all critics."""
        return Phase("critic", loss, ("critic/",), self.critic_steps, self.critic_lr)

    def critic(self, name: str, value: Tensor) -> nn.Module:
        """The critic called `name`, made for rows like those of `value` if there is none."""
        if name not in self.critics:
            made = self.make_critic(value.shape[1:])
            if not isinstance(made, nn.Module):
                raise TypeError(f"critic must be a function from a shape to an nn.Module, it gave {made!r}")
            self.critics[name] = made.to(value)
        return self.critics[name]

    def judge(self, name: str, value: Tensor) -> Tensor:
        """The logits of a critic, `(N,)`; or `(N, M)` of one that judges M things apart, whose mean then counts."""
        logits: Tensor = self.critic(name, value)(value)
        if logits.shape[:1] != value.shape[:1] or logits.dim() > 2:
            raise ValueError(
                f"the critic {name!r} gave logits of shape {tuple(logits.shape)} for {len(value)} rows, "
                f"({len(value)},) was expected: end it with .squeeze(-1)"
            )
        return logits

    def beside(self, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """`value` with the condition beside it, if there is one."""
        if self.condition is None:
            return value
        given = self.condition(*args, **kwargs).to(value)
        if given.dim() != 2 or len(given) != len(value):
            raise ValueError(f"condition gave {tuple(given.shape)}, expected ({len(value)}, C): one row for each datum")
        return torch.cat([value.flatten(1), given], 1)

    def critic_loss(self, name: str, real: Tensor, *fakes: Tensor) -> Tensor:
        """Mean loss of a critic that shall tell `real` from each of `fakes`, with its penalties."""
        real = real.detach()
        above = self.judge(name, real)
        loss = self.game.real(above).mean()
        for fake in fakes:
            below = self.judge(name, fake.detach())
            loss = loss + self.game.fake(below).mean()
            if self.gradient_penalty:
                loss = loss + self.gradient_penalty * gradient_penalty(self.critics[name], real, fake)
        if self.r1:
            loss = loss + self.r1 * r1_penalty(self.critics[name], real)
        self._note(name, above, below, real, fakes[-1])
        return loss

    def health(self) -> dict[str, float]:
        """How the games go, averaged over the last hundred steps or so, for each critic.

        "accuracy/NAME" is the chance that it gives a real row a higher logit than a fake one: near 0.5 they cannot be
        told apart, at 1 it has won, and what it judges learns little from it. "spread/NAME" is the mean distance of two
        fake rows over that of two real ones: far below 1, the fake ones have collapsed.
        """
        return {name: float(value) for name, value in self._noted.items()}

    @torch.no_grad()
    def _note(self, name: str, above: Tensor, below: Tensor, real: Tensor, fake: Tensor) -> None:
        found = {"accuracy": (above > below).to(above).mean(), "spread": _spread(fake) / _spread(real)}
        for key, value in found.items():
            # changed in place, so that a compiled step carries them on
            kept = self._noted.setdefault(f"{key}/{name}", value.clone())
            # one datum alone has no spread
            kept.lerp_(torch.where(value.isfinite(), value, kept), 0.01)

    def updated(self, params: Mapping[str, Tensor]) -> None:
        super().updated(params)
        self._steps += 1
        if self._steps % LOOK_EVERY == 0:
            for name in self.critics:
                self._look(name)

    def _look(self, name: str) -> None:
        accuracy, spread = (float(self._noted[f"{key}/{name}"]) for key in ("accuracy", "spread"))
        if not all(bool(p.isfinite().all()) for p in self.critics[name].parameters()):
            warn_once(self._said, f"{name} broken", f"the critic {name!r} has weights that are not finite: lower lr")
        elif self.watched and accuracy > WON:
            warn_once(
                self._said,
                f"{name} won",
                f"the critic {name!r} tells {accuracy:.1%} of the pairs apart after {self._steps} steps: what it "
                "judges learns little from it. Try a lower critic_lr, r1 > 0 or spectral normalization",
            )
        if self.watched and spread < COLLAPSED:
            warn_once(
                self._said,
                f"{name} collapsed",
                f"mode collapse: what the critic {name!r} judges varies {spread:.2f} times as much as it should "
                f"after {self._steps} steps. Try an objective that reconstructs (VEEGAN, AAE), r1 > 0 or less lr",
            )


def total(mean: Tensor, drawn: Drawn) -> Tensor:
    """A mean over the batch as a sum over the data, which losses are here."""
    return mean * drawn.plate.full_size


def _spread(rows: Tensor) -> Tensor:
    """Mean distance of a row to the next one."""
    return (rows - rows.roll(1, 0)).flatten(1).norm(dim=1).mean()
