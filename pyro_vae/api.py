"""The public names of the package: whatever stands here is `pyro_vae.NAME`."""

from importlib.metadata import version

from pyro_vae import conditionals, data, elbo, evaluate, models, nets, oracles, plots, priors
from pyro_vae.distributed.ranks import Ranks, launch
from pyro_vae.evaluate import (
    AIS,
    BDMC,
    Importance,
    bound,
    check_estimator,
    clustering_accuracy,
    compare_elbos,
    decode,
    encode,
    fit_local,
    impute,
    inference_gaps,
    latent_report,
    log_marginal,
    posterior_samples,
    reconstruct,
    repair,
    sample,
    sample_quality,
    summarize,
)
from pyro_vae.evaluate.disentanglement.report import disentanglement
from pyro_vae.evaluate.preflight.report import preflight
from pyro_vae.models import VAE, Autoencoder, AuxiliaryVAE
from pyro_vae.runs import load_pair, load_run, save_pair, train
from pyro_vae.training import tracking
from pyro_vae.training.checkpoints import Checkpoints
from pyro_vae.training.comparison.compare import compare_training
from pyro_vae.training.comparison.result import TrainingComparison
from pyro_vae.training.fitting import State, fit
from pyro_vae.training.history import Epoch, History
from pyro_vae.training.nonfinite import NonFiniteLoss
from pyro_vae.training.svi import SVI

__version__ = version("pyro-vae")

__all__ = [
    "AIS",
    "BDMC",
    "Importance",
    "State",
    "Epoch",
    "TrainingComparison",
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
    "train",
]
