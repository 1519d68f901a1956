"""Questions put to a pair: is it sound, what is its ELBO, what is its marginal likelihood, what does it generate."""

from pyro_vae.evaluate.bidirectional import Bracket
from pyro_vae.evaluate.bound import Bound, bound
from pyro_vae.evaluate.check_estimator import check_estimator
from pyro_vae.evaluate.compare import Comparison, EstimatorRow, compare_elbos
from pyro_vae.evaluate.gaps import InferenceGaps, inference_gaps
from pyro_vae.evaluate.generalization import Generalization, generalization
from pyro_vae.evaluate.generate import reconstruct, sample
from pyro_vae.evaluate.latent import latent_report
from pyro_vae.evaluate.latent_result import LatentDimension, LatentReport, LatentSite
from pyro_vae.evaluate.likelihood import LogMarginal, log_marginal
from pyro_vae.evaluate.local import fit_local
from pyro_vae.evaluate.local_guide import LocalGuide
from pyro_vae.evaluate.posterior_samples import posterior_samples
from pyro_vae.evaluate.preflight import Problem, Report, preflight
from pyro_vae.evaluate.repair import Repair, repair
from pyro_vae.evaluate.summary import Summary, summarize
from pyro_vae.evaluate.verdict import CheckLine, EstimatorCheck

__all__ = [
    "Bound",
    "Bracket",
    "CheckLine",
    "Comparison",
    "EstimatorCheck",
    "EstimatorRow",
    "LatentDimension",
    "LatentReport",
    "LatentSite",
    "Generalization",
    "InferenceGaps",
    "LocalGuide",
    "LogMarginal",
    "Problem",
    "Repair",
    "Report",
    "Summary",
    "bound",
    "check_estimator",
    "compare_elbos",
    "latent_report",
    "fit_local",
    "generalization",
    "inference_gaps",
    "log_marginal",
    "posterior_samples",
    "preflight",
    "reconstruct",
    "repair",
    "sample",
    "summarize",
]
