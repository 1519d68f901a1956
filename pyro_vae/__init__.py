"""Variational autoencoders as Pyro programs: train any model/guide pair, and measure what it is worth.

A pair is two Pyro functions, `model(x, *args)` and `guide(x, *args)`, with the same latent sites.
"""

from importlib.metadata import version

from pyro_vae import conditionals, data, elbo, evaluate, models, nets, oracles, plots, priors, tracking
from pyro_vae.checkpoints import Checkpoints
from pyro_vae.compare_training import compare_training
from pyro_vae.evaluate import (
    bound,
    check_estimator,
    clustering_accuracy,
    compare_elbos,
    decode,
    disentanglement,
    encode,
    fit_local,
    impute,
    inference_gaps,
    latent_report,
    log_marginal,
    posterior_samples,
    preflight,
    reconstruct,
    repair,
    sample,
    sample_quality,
    summarize,
)
from pyro_vae.fit import fit
from pyro_vae.guard import NonFiniteLoss
from pyro_vae.history import History
from pyro_vae.models import VAE, Autoencoder, AuxiliaryVAE
from pyro_vae.ranks import Ranks, launch
from pyro_vae.runs import load_pair, load_run, save_pair
from pyro_vae.svi import SVI

__version__ = version("pyro-vae")

__all__ = [
    "SVI",
    "VAE",
    "Autoencoder",
    "AuxiliaryVAE",
    "Checkpoints",
    "History",
    "NonFiniteLoss",
    "Ranks",
    "bound",
    "check_estimator",
    "clustering_accuracy",
    "compare_elbos",
    "compare_training",
    "conditionals",
    "data",
    "decode",
    "disentanglement",
    "elbo",
    "encode",
    "evaluate",
    "fit",
    "fit_local",
    "impute",
    "inference_gaps",
    "launch",
    "load_pair",
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
    "sample_quality",
    "save_pair",
    "summarize",
    "tracking",
]
