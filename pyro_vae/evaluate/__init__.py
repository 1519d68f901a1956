"""Questions about a pair: is it sound, what are its ELBO and its marginal likelihood, what does it generate."""

from pyro_vae.evaluate.agreement import Coherence, coherence
from pyro_vae.evaluate.bounds import Bound, bound
from pyro_vae.evaluate.calibration.classes import Reliability
from pyro_vae.evaluate.calibration.result import Calibration, CalibrationRow
from pyro_vae.evaluate.disentanglement.report import Disentanglement
from pyro_vae.evaluate.estimators.check import check_estimator
from pyro_vae.evaluate.estimators.compare import compare_elbos
from pyro_vae.evaluate.estimators.models import compare_models
from pyro_vae.evaluate.estimators.models_result import ModelComparison
from pyro_vae.evaluate.estimators.recommendation import Choice, Cost, Recommendation
from pyro_vae.evaluate.estimators.result import ElboComparison, EstimatorRow
from pyro_vae.evaluate.estimators.verdict import CheckLine, EstimatorCheck
from pyro_vae.evaluate.fidelity import ColumnDistance, TableFidelity, table_fidelity
from pyro_vae.evaluate.forecasts import Forecast, forecast
from pyro_vae.evaluate.generate import reconstruct, sample
from pyro_vae.evaluate.imputation import Imputation, impute
from pyro_vae.evaluate.imputers import ColumnScore, ImputationScores, imputation_scores, impute_without_model
from pyro_vae.evaluate.latent.dimensions import LatentDimension, LatentSite
from pyro_vae.evaluate.latent.report import latent_report
from pyro_vae.evaluate.latent.result import LatentReport
from pyro_vae.evaluate.local.fitting import fit_local
from pyro_vae.evaluate.local.gaps import inference_gaps
from pyro_vae.evaluate.local.generalizing import Generalization, generalization
from pyro_vae.evaluate.local.guide import LocalGuide
from pyro_vae.evaluate.local.result import InferenceGaps
from pyro_vae.evaluate.marginal.brackets import BidirectionalBounds
from pyro_vae.evaluate.marginal.conditional import LogConditional, log_conditional
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.evaluate.marginal.methods import AIS, BDMC, SMC, Importance
from pyro_vae.evaluate.marginal.posterior import posterior_samples
from pyro_vae.evaluate.marginal.repairs import LogMarginalRepair, repair
from pyro_vae.evaluate.marginal.result import LogMarginal
from pyro_vae.evaluate.preflight.result import PreflightIssue, PreflightReport
from pyro_vae.evaluate.quality.features import FeatureNet, inception_features, train_features
from pyro_vae.evaluate.quality.parzen import parzen_log_likelihood
from pyro_vae.evaluate.quality.report import sample_quality
from pyro_vae.evaluate.quality.result import SampleQuality, SampleQualityMetrics
from pyro_vae.evaluate.representation.clustering import clustering_accuracy
from pyro_vae.evaluate.representation.codes import decode, encode
from pyro_vae.evaluate.representation.traversals import attribute_vector, embed, interpolate, manifold, traverse
from pyro_vae.evaluate.summary import Summary, summarize

__all__ = [
    "ColumnDistance",
    "ColumnScore",
    "ImputationScores",
    "TableFidelity",
    "imputation_scores",
    "impute_without_model",
    "table_fidelity",
    "AIS",
    "Choice",
    "Cost",
    "ModelComparison",
    "Recommendation",
    "BDMC",
    "SMC",
    "Importance",
    "Bound",
    "BidirectionalBounds",
    "Calibration",
    "CalibrationRow",
    "CheckLine",
    "Coherence",
    "ElboComparison",
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
    "LogConditional",
    "LogMarginal",
    "Reliability",
    "FeatureNet",
    "Forecast",
    "PreflightIssue",
    "SampleQuality",
    "SampleQualityMetrics",
    "inception_features",
    "parzen_log_likelihood",
    "sample_quality",
    "train_features",
    "LogMarginalRepair",
    "PreflightReport",
    "Summary",
    "attribute_vector",
    "bound",
    "check_estimator",
    "clustering_accuracy",
    "coherence",
    "compare_elbos",
    "compare_models",
    "decode",
    "embed",
    "encode",
    "interpolate",
    "latent_report",
    "manifold",
    "fit_local",
    "forecast",
    "generalization",
    "impute",
    "inference_gaps",
    "log_conditional",
    "log_marginal",
    "posterior_samples",
    "reconstruct",
    "repair",
    "sample",
    "summarize",
    "traverse",
]
