"""Variational autoencoders as Pyro programs: train any model/guide pair, and measure what it is worth.

A pair is two Pyro functions, `model(x, *args)` and `guide(x, *args)`, with the same latent sites.
"""

from importlib.metadata import version

from pyro_vae import conditionals, data, elbo, evaluate, models, nets, oracles, plots, priors
from pyro_vae.compare_training import compare_training
from pyro_vae.evaluate import (
    bound,
    check_estimator,
    compare_elbos,
    fit_local,
    inference_gaps,
    latent_report,
    log_marginal,
    posterior_samples,
    preflight,
    reconstruct,
    repair,
    sample,
    summarize,
)
from pyro_vae.fit import fit
from pyro_vae.guard import NonFiniteLoss
from pyro_vae.history import History
from pyro_vae.models import VAE, AuxiliaryVAE
from pyro_vae.runs import load_run
from pyro_vae.svi import SVI

__version__ = version("pyro-vae")

__all__ = [
    "SVI",
    "VAE",
    "AuxiliaryVAE",
    "History",
    "NonFiniteLoss",
    "bound",
    "check_estimator",
    "compare_elbos",
    "compare_training",
    "conditionals",
    "data",
    "elbo",
    "evaluate",
    "fit",
    "fit_local",
    "inference_gaps",
    "load_run",
    "latent_report",
    "log_marginal",
    "models",
    "nets",
    "oracles",
    "plots",
    "posterior_samples",
    "preflight",
    "priors",
    "reconstruct",
    "repair",
    "sample",
    "summarize",
]
