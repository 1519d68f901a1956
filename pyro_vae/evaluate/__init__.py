"""Questions put to a pair: is it sound, what is its ELBO, what is its marginal likelihood, what does it generate."""

from pyro_vae.evaluate.bound import Bound, bound
from pyro_vae.evaluate.clustering import clustering_accuracy
from pyro_vae.evaluate.codes import decode, encode
from pyro_vae.evaluate.disentanglement.report import Disentanglement, disentanglement
from pyro_vae.evaluate.estimators.check import check_estimator
from pyro_vae.evaluate.estimators.compare import Comparison, EstimatorRow, compare_elbos
from pyro_vae.evaluate.estimators.verdict import CheckLine, EstimatorCheck
from pyro_vae.evaluate.generate import reconstruct, sample
from pyro_vae.evaluate.impute import Imputation, impute
from pyro_vae.evaluate.latent.report import latent_report
from pyro_vae.evaluate.latent.result import LatentDimension, LatentReport, LatentSite
from pyro_vae.evaluate.latent_moves import attribute_vector, embed, interpolate, manifold, traverse
from pyro_vae.evaluate.local.fit import fit_local
from pyro_vae.evaluate.local.gaps import InferenceGaps, inference_gaps
from pyro_vae.evaluate.local.generalization import Generalization, generalization
from pyro_vae.evaluate.local.guide import LocalGuide
from pyro_vae.evaluate.marginal.bidirectional import Bracket
from pyro_vae.evaluate.marginal.likelihood import LogMarginal, log_marginal
from pyro_vae.evaluate.marginal.posterior_samples import posterior_samples
from pyro_vae.evaluate.marginal.repair import Repair, repair
from pyro_vae.evaluate.preflight.report import Problem, Report, preflight
from pyro_vae.evaluate.quality.features import FeatureNet, inception_features, train_features
from pyro_vae.evaluate.quality.parzen import parzen_log_likelihood
from pyro_vae.evaluate.quality.report import sample_quality
from pyro_vae.evaluate.quality.result import Quality, QualityFigures
from pyro_vae.evaluate.summary import Summary, summarize

__all__ = [
    "Bound",
    "Bracket",
    "CheckLine",
    "Comparison",
    "Disentanglement",
    "EstimatorCheck",
    "EstimatorRow",
    "LatentDimension",
    "LatentReport",
    "LatentSite",
    "Generalization",
    "Imputation",
    "InferenceGaps",
    "LocalGuide",
    "LogMarginal",
    "FeatureNet",
    "Problem",
    "Quality",
    "QualityFigures",
    "inception_features",
    "parzen_log_likelihood",
    "sample_quality",
    "train_features",
    "Repair",
    "Report",
    "Summary",
    "attribute_vector",
    "bound",
    "check_estimator",
    "clustering_accuracy",
    "compare_elbos",
    "decode",
    "disentanglement",
    "embed",
    "encode",
    "interpolate",
    "latent_report",
    "manifold",
    "fit_local",
    "generalization",
    "impute",
    "inference_gaps",
    "log_marginal",
    "posterior_samples",
    "preflight",
    "reconstruct",
    "repair",
    "sample",
    "summarize",
    "traverse",
]
