"""A random program as an oracle, for `pv.check_estimator`."""

from __future__ import annotations

import pyro
from torch import Tensor, nn

from pyro_vae.oracles import Oracle, expected_log_mean
from tests.fuzz.programs import Exact, Pair, Program

__all__ = ["RandomOracle"]


class RandomOracle(Oracle):
    """The program of a seed, without latents that all data share: its data are two, in turns.

    Args:
        program: The program.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.names = {name: name.replace(".", "_") for name in program.parameters}
        for name, value in program.parameters.items():
            self.register_parameter(self.names[name], nn.Parameter(value.clone()))
        self.guide_parameters = tuple(  # type: ignore[misc]
            own for name, own in self.names.items() if name.startswith("guide")
        )
        self.reparameterized = not any(site.discrete for site in program.latents)  # type: ignore[misc]

    @property
    def is_bound(self) -> bool:
        """Whether nothing is scaled, masked or added."""
        sites = self.program.sites.values()
        weighed = any(w.scale != 1 or w.mask for site in sites for w in site.weighing.values())
        scaled = any(full > size for size, full in self.program.sizes.values())
        return not (weighed or scaled or self.program.guide_only)

    def num_data(self, x: Tensor) -> int:
        return self.program.full_factor * len(x)

    def simulate(self, n: int) -> Tensor:
        return self.program.x.repeat(n // 2, 1)

    def model(self, x: Tensor) -> None:
        _One(self).run("model", x)

    def guide(self, x: Tensor) -> None:
        _One(self).run("guide", x)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        return self._exact().per_datum(kl_weight=weight).repeat(len(x) // 2)

    def iwae(self, x: Tensor, num_particles: int) -> Tensor:
        local, _, log_mass = self._exact().log_weights()
        return expected_log_mean(local, log_mass.expand_as(local), num_particles).repeat(len(x) // 2)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._exact().log_marginal().repeat(len(x) // 2)

    def _exact(self) -> Exact:
        exact = Exact(self.program)
        exact.parameters = {name: getattr(self, own) for name, own in self.names.items()}
        return exact


class _One(Pair):
    """The program on rows that share its parameters."""

    def __init__(self, oracle: RandomOracle) -> None:
        self.program, self.enumerate = oracle.program, False
        self.parameters = {name: pyro.param(own, getattr(oracle, own)) for name, own in oracle.names.items()}
