"""The adversarial autoencoder with a class as a second latent: semi-supervised learning, and clustering."""

from __future__ import annotations

from typing import Any, ClassVar

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import OneHotCategorical

from pyro_vae.elbo.adversarial.autoencoder import AAE
from pyro_vae.elbo.adversarial.draws import Drawn, codes, infer
from pyro_vae.elbo.adversarial.phases import Phase
from pyro_vae.elbo.objectives.labels import classification_log_prob, hide_labels
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import Site, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["CategoricalAAE"]


class CategoricalAAE(AAE):
    r"""An `AAE` of a class y and a style z, with a critic on each; some data may have labels.

    .. math:: \pi(x) &= q(y \mid x) \text{ as a vector of probabilities}, \qquad z \sim q(z \mid x, \pi(x)) \\
        \text{regularize:} &\quad \text{make } \pi(x) \text{ look like one-hot draws of } p(y), \text{ and } z
        \text{ like draws of } p(z) \\
        \text{classify:} &\quad \min_q -\log q(y_n \mid x_n) \text{ where } y_n \text{ is known} \\
        \text{reconstruct:} &\quad \min_{p, q} -E_q[\log p(x \mid z, \pi(x))]

    The pair has a class at a `OneHotCategorical` site, as `SemiSupervisedVAE` does, and need not be changed: while this
    objective runs, the guide passes on the probabilities of such a site in place of a draw. Gradients pass through
    them. The critic "y" makes them certain, and each class as frequent as in the prior; it judges all such sites
    concatenated. The critic "z" judges all other latents.

    With labels the pair takes `(x, y, ...)`, y of shape `(N,)` with -1 for "unlabeled". The labels are hidden from all
    phases except "classify": the critics and the decoder get the guide's own probabilities.

    Args:
        weight: As for `AAE`.
        labels: Whether some data have labels. False means clustering: there is no phase "classify", and the pair may
            be called without y.
        site: Name of the label's site in the guide.
        options: Further arguments of `Adversarial`.

    Raises:
        ValueError: For a pair without a one-hot latent, or with a latent through which no gradient passes; with
            `labels`, for a pair that is called without them.

    Reference: Makhzani et al. 2015, arXiv 1511.05644, sections 5 and 6.
    """

    for_discrete: ClassVar[bool] = True

    @checked
    def __init__(
        self, num_particles: int = 1, weight: float = 1.0, labels: bool = True, site: str = "y", **options: Any
    ) -> None:
        super().__init__(num_particles, weight, **options)
        self.labels, self.site = labels, site
        if labels:
            *others, last = self.phases
            self.phases = (*others, Phase("classify", self._classify, ("guide",)), last)

    def _infer(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Drawn:
        return infer(model, _ReplaceByProbabilities()(guide), hide_labels(args) if self.labels else args, kwargs)

    def _codes(self, drawn: Drawn) -> dict[str, Tensor]:
        classes: dict[str, Site] = {}
        others: dict[str, Site] = {}
        for name, site in sample_sites(drawn.traces.model):
            if not (site["is_observed"] or site["infer"].get("was_observed")):
                (classes if isinstance(base_distribution(site["fn"]), OneHotCategorical) else others)[name] = site
        if not classes:
            raise ValueError(
                f"the model has no OneHotCategorical latent (it has {list(others)}), and CategoricalAAE needs one "
                "for the class: use 'aae' for a pair without classes"
            )
        parts = {"y": classes, "z": others}
        return {name: codes(sites, drawn.plate) for name, sites in parts.items() if sites}

    def _classify(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        return -classification_log_prob(guide, self.site, args, kwargs)


class _ReplaceByProbabilities(Messenger):
    """Gives a program the probabilities of its one-hot sites in place of draws."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        fn = base_distribution(msg["fn"])
        if isinstance(fn, OneHotCategorical):
            msg["value"], msg["done"] = fn.probs, True
        elif not msg["fn"].has_rsample:
            raise ValueError(
                f"no gradient passes a draw at the site {msg['name']!r}, from {type(fn).__name__}: write classes as "
                "OneHotCategorical in model and guide, or use an ELBO for discrete latents ('enum', 'vimco')"
            )
