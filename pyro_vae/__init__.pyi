"""The public names: whatever stands here is `pyro_vae.NAME`, and is imported when it is first asked for."""

from . import conditionals, data, elbo, evaluate, models, nets, oracles, plots, priors
from .distributed.ranks import Ranks, launch
from .evaluate import (
    AIS,
    BDMC,
    SMC,
    Importance,
    bound,
    check_estimator,
    clustering_accuracy,
    coherence,
    compare_elbos,
    compare_models,
    decode,
    encode,
    fit_local,
    forecast,
    impute,
    inference_gaps,
    latent_report,
    log_conditional,
    log_marginal,
    posterior_samples,
    reconstruct,
    repair,
    sample,
    sample_quality,
    summarize,
)
from .evaluate.calibration.question import calibration
from .evaluate.disentanglement.report import disentanglement
from .evaluate.posterior_draws import to_xarray
from .evaluate.preflight.report import preflight
from .exporting import export
from .guides import AmortizedGuide
from .models import VAE, Autoencoder, AuxiliaryVAE, TabularVAE
from .reports import explore, report
from .runs import load_pair, load_run, save_pair, train
from .training import tracking
from .training.checkpoints import Checkpoints
from .training.comparison.compare import compare_training
from .training.comparison.result import TrainingComparison
from .training.fitting import State, fit
from .training.history import Epoch, History
from .training.nonfinite import NonFiniteLoss
from .training.svi import SVI
from .training.together.many import fit_many
from .training.together.result import SeedRuns

__version__: str

__all__ = [
    "AIS",
    "BDMC",
    "SMC",
    "Importance",
    "State",
    "Epoch",
    "SeedRuns",
    "TrainingComparison",
    "SVI",
    "VAE",
    "AmortizedGuide",
    "Autoencoder",
    "AuxiliaryVAE",
    "Checkpoints",
    "History",
    "NonFiniteLoss",
    "Ranks",
    "TabularVAE",
    "bound",
    "calibration",
    "check_estimator",
    "clustering_accuracy",
    "coherence",
    "compare_elbos",
    "compare_models",
    "compare_training",
    "conditionals",
    "data",
    "decode",
    "disentanglement",
    "elbo",
    "encode",
    "evaluate",
    "export",
    "explore",
    "fit",
    "fit_local",
    "fit_many",
    "forecast",
    "impute",
    "inference_gaps",
    "launch",
    "load_pair",
    "load_run",
    "latent_report",
    "log_conditional",
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
    "report",
    "sample",
    "sample_quality",
    "save_pair",
    "summarize",
    "to_xarray",
    "tracking",
    "train",
]
