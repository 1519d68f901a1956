"""Questions put to a pair: is it sound, what is its ELBO, what is its marginal likelihood, what does it generate."""

from pyro_vae.evaluate.bound import Bound, bound
from pyro_vae.evaluate.compare import Comparison, EstimatorRow, compare_elbos
from pyro_vae.evaluate.generate import reconstruct, sample
from pyro_vae.evaluate.likelihood import LogMarginal, log_marginal
from pyro_vae.evaluate.preflight import Problem, Report, preflight
from pyro_vae.evaluate.summary import Summary, summarize

__all__ = [
    "Bound",
    "Comparison",
    "EstimatorRow",
    "LogMarginal",
    "Problem",
    "Report",
    "Summary",
    "bound",
    "compare_elbos",
    "log_marginal",
    "preflight",
    "reconstruct",
    "sample",
    "summarize",
]
