"""The ELBO of a pair that is given some labels, with a classification loss for its guide."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.infer
import torch
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import TensorELBO
from pyro_vae.elbo.estimators.enumeration import Enumeration
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import log_prob, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["SemiSupervised", "classification_log_prob", "hide_labels"]


class SemiSupervised(TensorELBO):
    r"""Any ELBO of a pair that is given some labels, plus the classification loss of its guide on these.

    .. math:: L = L_\mathrm{ELBO}(x, y) + \alpha \sum_{n: y_n \ge 0} \log q(y_n \mid x_n)

    For a pair that takes `(x, y, ...)`, y of shape `(N,)` with -1 for "unlabeled", and whose guide draws the label at
    a categorical or one-hot site, as `pyro_vae.models.SemiSupervisedVAE`. A guide that gets the label does not show
    what it would have predicted, so it runs a second time with every label hidden.

    Args:
        num_particles: Draws from the guide, for the wrapped ELBO.
        elbo: The ELBO to wrap. Default: `elbo="enum"`, which sums over the labels exactly.
        weight: alpha >= 0, per labeled datum. Kingma et al. take 0.1 times the number of data over that of the
            labeled ones. That is 0.1 B / B_l where every batch of B data has B_l labeled ones, whatever their total
            number. Pyro's tutorial takes 46 and sees each label once an epoch.
        site: Name of the label's site in the guide.

    Raises:
        ValueError: For a negative weight; for a pair called without labels, or without such a site.

    Reference: Kingma et al. 2014, arXiv 1406.5298, eq. 9.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.models.SemiSupervisedVAE(6, num_classes=3, latent_dim=2, hidden=(8,))
        >>> x, y = torch.ones(4, 6), torch.tensor([2, -1, 0, -1])
        >>> history = pv.fit(vae.model, vae.guide, (x, y), elbo=SemiSupervised(weight=10.0), epochs=2, batch_size=2)
    """

    for_discrete: ClassVar[bool] = True
    bound: ClassVar[str] = "own"

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        elbo: pyro.infer.ELBO | None = None,
        weight: float = 46.0,
        site: str = "y",
    ) -> None:
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be a number >= 0, got {weight}")
        super().__init__(num_particles=num_particles if elbo is None else elbo.num_particles)
        self.elbo: Any = Enumeration(num_particles=num_particles) if elbo is None else elbo
        self.weight, self.site = weight, site

    def advance(self) -> None:
        """Let the wrapped ELBO move on in its own schedule, if it has one."""
        getattr(self.elbo, "advance", lambda: None)()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        return loss - self.weight * classification_log_prob(guide, self.site, args, kwargs)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The value of `differentiable_loss` without a gradient, a 0-d tensor."""
        with torch.no_grad():  # Pyro's ELBOs have no differentiable loss there
            loss = torch.as_tensor(self.elbo.loss(model, guide, *args, **kwargs))
            return loss - self.weight * classification_log_prob(guide, self.site, args, kwargs)


def hide_labels(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments `(x, y, ...)` of a pair with every label hidden.

    Raises:
        ValueError: If there are no labels to hide.
    """
    if len(args) < 2 or not isinstance(args[1], Tensor) or args[1].shape != (len(args[0]),):
        shape = tuple(args[1].shape) if len(args) > 1 and isinstance(args[1], Tensor) else "none"
        raise ValueError(
            f"the classification loss needs the labels as second argument, ({len(args[0])},) with -1 for a datum "
            f"without one, got {shape}: train on a tuple (x, y); without labels use 'enum', or 'categorical_aae' with "
            "labels=False"
        )
    return (args[0], torch.full_like(args[1], -1), *args[2:])


def classification_log_prob(guide: Program, site: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The sum of log q(y|x) over the labeled data, for the guide's `site` with every label hidden; nats, 0-d."""
    trace = traced(guide, hide_labels(args), kwargs)
    y = args[1]
    sites = dict(sample_sites(prune_subsample_sites(trace)))
    if site not in sites:
        raise ValueError(
            f"the guide draws no site {site!r} when labels are hidden (it draws {list(sites) or 'nothing'}): "
            "give the name of the label's site as site=..."
        )
    fn = sites[site]["fn"]
    label = y.clamp_min(0)
    if fn.event_shape:
        label = (label.unsqueeze(-1) == torch.arange(fn.event_shape[-1], device=y.device)).to(args[0].dtype)
    log_q = log_prob(site, {**sites[site], "value": label})
    return torch.where(y >= 0, log_q, torch.zeros_like(log_q)).sum()
