"""Every public call with arguments that work, and values that no argument of a kind may have."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import signal
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch

import pyro_vae as pv
from pyro_vae.oracles import LinearGaussian
from pyro_vae.support.annotations import fits, resolved
from pyro_vae.support.results import Result
from tests.helpers.paths import STORED

__all__ = ["Call", "bad_values", "calls", "kind_of", "outcome"]

X = (torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
MODULES = ("conditionals", "data", "elbo", "evaluate", "models", "nets", "oracles", "plots", "priors")
SECONDS = 20  # before a call counts as hanging

# Not called by users: results, states and abstract classes; or they need another package, weights or a server.
NOT_CALLED = {
    *("Epoch", "NonFiniteLoss", "State", "SeedRuns", "TrainingComparison", "Binarize", "Source", "Data", "Split"),
    "Coefficients",
    *("Table", "ColumnDistance", "ColumnScore"),
    "use_style",  # takes no argument, and changes the process
    *("Bound", "CheckLine", "EstimatorRow", "LatentDimension", "LatentSite", "LocalGuide", "PreflightIssue", "Prior"),
    *("Choice", "Cost", "Filtered"),
    *("SampleQualityMetrics", "FlowDistribution", "Pair", "Oracle", "Weighting", "inception_features", "Conditional"),
    *("Flow", "Likelihood", "bounded_exp", "soft_bound", "PhasedELBO", "SurrogateELBO", "TensorELBO"),
    *("Schedule", "adversarial", "TraceGraph"),
    *("CalibrationRow", "Reliability", "explore"),
}


@dataclass(frozen=True)
class Call:
    """A public call with arguments that work.

    Attributes:
        name: How it is reached from `pyro_vae`.
        function: The function or class.
        args, kwargs: Functions that make arguments that work.
    """

    name: str
    function: Callable[..., Any]
    args: Callable[[], tuple[Any, ...]]
    kwargs: Callable[[], dict[str, Any]] = field(default=dict)

    def run(self, **changed: Any) -> Any:
        """Call it, with some arguments changed."""
        names = list(inspect.signature(self.function).parameters)
        args, kwargs = list(self.args()), {**self.kwargs()}
        for name, value in changed.items():
            if name in names[: len(args)]:
                args[names.index(name)] = value
            else:
                kwargs[name] = value
        return self.function(*args, **kwargs)

    def arguments(self) -> dict[str, str]:
        """The kind of each argument that can be passed by name and is no part of the pair or of its data."""
        given = len(self.args())
        found: dict[str, str] = {}
        for i, (name, p) in enumerate(inspect.signature(self.function).parameters.items()):
            is_free = p.kind is p.KEYWORD_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and i >= given)
            if is_free and (kind := kind_of(p.annotation)):
                found[name] = kind
        return found

    def of_other_types(self) -> Iterator[tuple[str, Any]]:
        """Names of the other arguments, those of the pair among them, with values that are not of their types."""
        function: Any = self.function
        function = getattr(function, "__init__", None) if isinstance(function, type) else function
        for name, p in inspect.signature(self.function).parameters.items():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or kind_of(p.annotation):
                continue
            annotation = resolved(p.annotation, inspect.unwrap(function).__globals__)
            yield from ((name, value) for value in (object(), 5, "nonsense", [], None) if not fits(annotation, value))


def kind_of(annotation: Any) -> str | None:
    """The kind of an argument by its annotation: "int", "float", "bool", "choice", "path" ..., with "?" for None."""
    text = inspect.formatannotation(annotation) if not isinstance(annotation, str) else annotation
    text = text.replace("typing.", "").replace("collections.abc.", "").replace("'", "")
    parts = [part.strip() for part in re.split(r"\s*\|\s*(?![^\[]*\])", text)]
    none = "?" * ("None" in parts)
    parts = sorted(part for part in parts if part != "None")
    kinds: dict[tuple[str, ...], str] = {
        **{(name,): name for name in ("int", "float", "bool", "str")},
        ("Path", "str"): "path",
        ("Sequence[int]",): "sizes",
        ("Sequence[int]", "int"): "size",
        ("Literal[auto]", "bool"): "bool",
        ("Sequence[Callback]",): "functions",
        ("Binarize",): "choice",
        ("Kernel",): "choice",
        ("Precision",): "choice",
        ("LRSchedule",): "choice",
        ("Devices",): "choice",
    }
    if tuple(parts) in kinds:
        return kinds[tuple(parts)] + none
    return f"choice{none}" if len(parts) == 1 and parts[0].startswith("Literal[") else None


_NUMBERS = itertools.count()
_NOT_NUMBERS: list[Any] = ["3", [], {}, object(), True, torch.ones(2), float("nan")]
_BAD: dict[str, list[Any]] = {
    "int": [*_NOT_NUMBERS, 1.5, -1, 10**30, float("inf")],
    "float": [*_NOT_NUMBERS, 10**400],
    "bool": ["no", "false", 1, 0, [], 0.5, torch.ones(2)],
    "str": [5, [], True, object()],
    "choice": ["nonsense", 5.5, [], {}, True],
    "path": ["", 5, [], True, "\0"],
    "sizes": [5.5, "ab", [1.5], ["a"], [-1], [10**30], [True], object()],
    "size": [5.5, "ab", [1.5], ["a"], [-1], [10**30], True, 0, object()],
    "functions": [print, "ab", [5], 5],
}


def bad_values(kind: str) -> list[Any]:
    """The values that no argument of this kind may have."""
    return [*_BAD[kind.removesuffix("?")], *([] if kind.endswith("?") else [None])]


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(call: Call, name: str, value: Any) -> str:
    """What a bad value leads to: "clear", "accepted", "hangs", or the obscure error."""
    pyro.clear_param_store()
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call.run(**{name: value})
    except TimeoutError:
        return "hangs"
    except Exception as error:
        words = {name, name.replace("_", " "), name.removeprefix("num_")}
        is_named = any(word in str(error) for word in words)
        is_named |= isinstance(value, str) and repr(value) in str(error) and "unknown" in str(error)
        if isinstance(error, ValueError | TypeError) and is_named and "unexpected keyword" not in str(error):
            return "clear"
        return f"{type(error).__name__}: {str(error)[:100]}"
    return "accepted"


def calls(folder: Path) -> list[Call]:
    """All public calls."""
    found: dict[int, tuple[str, Any]] = {}
    for name in pv.__all__:
        found.setdefault(id(getattr(pv, name)), (name, getattr(pv, name)))
    for module in MODULES:
        for name in getattr(pv, module).__all__:
            found.setdefault(id(value := getattr(getattr(pv, module), name)), (f"{module}.{name}", value))
    result = []
    for path, value in found.values():
        name = path.split(".")[-1]
        is_result = isinstance(value, type) and issubclass(value, Result)
        if isinstance(value, types.ModuleType) or not callable(value) or is_result or name in NOT_CALLED:
            continue
        args, kwargs = _EXAMPLES.get(name, (tuple, dict))
        if name in _IN_FOLDER:
            kwargs = functools.partial(_IN_FOLDER[name], folder)
        result.append(Call(path, value, args, kwargs))
    return result


def _pair() -> tuple[Any, ...]:
    torch.manual_seed(0)
    vae = pv.VAE(6, 2, hidden=(3,))
    return vae.model, vae.guide


def _with_x() -> tuple[Any, ...]:
    return (*_pair(), X)


def _model() -> tuple[Any, ...]:
    return _pair()[0], X[:2]


def _series() -> tuple[Any, ...]:
    pair = pv.models.DeepMarkovModel((3, 1), 2, (3,), transition_dim=3, rnn_dim=3)
    return pair.model, pair.guide


def _codes() -> tuple[Any, ...]:
    return (torch.randn(12, 2, generator=torch.Generator().manual_seed(0)),)


def _result() -> dict[str, Any]:
    pair = _pair()
    return {"result": pv.log_marginal(*pair, X, num_samples=5), "rows": "all", "num_control": 1, "num_samples": 5}


def _columns() -> tuple[Any, ...]:
    return pv.data.table({"a": torch.randn(30).tolist(), "b": ["x", "y"] * 15}, valid=0, test=0).columns


def _rows() -> torch.Tensor:
    return torch.stack([torch.randn(30), torch.arange(30) % 2], 1)


def _value(*values: Any, **kwargs: Any) -> tuple[Any, Any]:
    return (lambda: values), (lambda: kwargs)


@functools.cache
def _gaps() -> dict[str, Any]:
    gaps = pv.inference_gaps(*_pair(), X[:2], num_samples=5, families=["diagonal_normal"])
    return {"train": gaps, "test": gaps}


_SHAPE = _value(6)
_EXAMPLES: dict[str, tuple[Callable[[], tuple[Any, ...]], Callable[[], dict[str, Any]]]] = {
    "AmortizedGuide": (lambda: (_pair()[0], X), dict),
    "SVI": (_pair, dict),
    "calibration": (_with_x, lambda: {"num_simulations": 30, "num_samples": 9}),
    "to_xarray": (_with_x, lambda: {"num_samples": 3}),
    "bound": (_with_x, dict),
    "check_estimator": _value("trace", LinearGaussian(3, 1), repeats=10),
    "clustering_accuracy": _value(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0])),
    "compare_elbos": (_with_x, lambda: {"estimators": ["trace"], "num_particles": [1], "repeats": 2, "num_samples": 5}),
    "compare_models": (lambda: (_pair(), _pair(), X), lambda: {"num_samples": 5}),
    "compare_training": _value(
        lambda seed: pv.VAE(6, 2, hidden=(3,)), X, ["trace"], seeds=[0], epochs=1, num_samples=5, preflight=False
    ),
    "decode": (lambda: (_pair()[0], *_codes(), X), dict),
    "disentanglement": (lambda: (torch.randn(60, 2), torch.arange(60).unsqueeze(1) % 3), dict),
    "encode": (lambda: (_pair()[1], X), dict),
    "fit": (_with_x, lambda: {"epochs": 1, "batch_size": 6, "seed": 0, "progress": False, "preflight": False}),
    "fit_many": _value(lambda seed: pv.VAE(6, 2, hidden=(3,)), X, seeds=[0], epochs=1, preflight=False),
    "fit_local": (_with_x, lambda: {"max_steps": 2, "num_particles": 1}),
    "forecast": (lambda: (*_series(), torch.randn(2, 3, 1)), lambda: {"steps": 2, "num_samples": 3}),
    "impute": (_with_x, lambda: {"mask": X < 1, "num_samples": 3}),
    "inference_gaps": (lambda: (*_pair(), X[:1]), lambda: {"num_samples": 5}),
    "interpolate": _value(torch.zeros(2), torch.ones(2)),
    "latent_report": (_with_x, dict),
    "launch": _value(),
    "log_conditional": (_with_x, lambda: {"given": (X,), "num_samples": 5}),
    "coherence": (_with_x, lambda: {"classify": {"x": lambda x: x[:, 0].long()}, "labels": X[:, 0].long()}),
    "log_marginal": (_with_x, lambda: {"num_samples": 5}),
    "posterior_samples": (_model, lambda: {"num_samples": 2, "warmup_steps": 2}),
    "preflight": (_with_x, dict),
    "reconstruct": (_with_x, dict),
    "repair": (_with_x, _result),
    "sample": (_model, dict),
    "sample_quality": (lambda: (torch.rand(20, 1, 8, 8), torch.rand(20, 1, 8, 8)), dict),
    "summarize": (_with_x, lambda: {"num_samples": 5}),
    "generalization": (tuple, _gaps),
    "expected_log_mean": _value(torch.randn(2, 3), torch.zeros(3), 2),
    "ppca_log_prob": _value(torch.randn(5, 3), 2, 1.0),
    "register": (lambda: (f"mine{next(_NUMBERS)}", pv.elbo.Trace), dict),
    "embed": (lambda: (torch.randn(12, 3),), lambda: {"perplexity": 3.0}),
    "traverse": _value(torch.zeros(2), torch.linspace(-1, 1, 3)),
    "attribute_vector": (lambda: (*_codes(), torch.arange(12) % 2 == 0), dict),
    "parzen_log_likelihood": (lambda: (*_codes() * 3,), dict),
    "train_features": (
        lambda: (torch.rand(20, 1, 28, 28), torch.arange(20) % 2),
        lambda: {"steps": 1, "batch_size": 5},
    ),
    "FeatureNet": _value((1, 28, 28), 3),
    "batches_of": _value((X,), 4),
    "load": _value("digits", flatten=True),
    "Vocabulary": _value(["a", "b"]),
    "table": _value({"a": [1.5, 2.0, 0.5, -1.0], "b": ["x", "y", "x", "y"]}, valid=0, test=0),
    "Column": _value("a", "real"),
    **{name: (lambda: (_columns(),), dict) for name in ("ColumnLikelihood", "TabularVAE")},
    "imputation_scores": (lambda: (_rows(), _rows(), torch.rand(30, 2) < 0.5, _columns()), dict),
    "impute_without_model": (lambda: (_rows(), torch.rand(30, 2) < 0.9, _columns()), dict),
    "table_fidelity": (lambda: (_rows(), _rows(), _columns()), dict),
    "Sprites": _value(num_images=3),
    "Cyclical": _value(2.0),
    "Warmup": _value(2.0),
    "WeightedKL": (lambda: (pv.elbo.Trace(),), dict),
    "bound_of": _value("trace"),
    "min_particles": _value("trace"),
    "make": _value("trace"),
    "label": _value("trace"),
    "mmd": _value(torch.randn(5, 2), torch.randn(5, 2)),
    "with_missing": (_pair, dict),
    **{name: _value(num_particles=2) for name in ("RWS", "VIMCO")},
    "TextVAE": _value(5, 4),
    "Quadrants": _value((1, 4, 4)),
    "MLP": _value(3, (4,), 2),
    **{name: _value((1, 8, 8), 3) for name in ("ConvEncoder", "ResidualEncoder")},
    **{name: _value(3, (1, 8, 8)) for name in ("ConvDecoder", "ResidualDecoder")},
    **dict.fromkeys(
        (
            "VAE",
            "GMVAE",
            "DeepMarkovModel",
            "MultimodalVAE",
            "Autoencoder",
            "AuxiliaryVAE",
            "ConditionalVAE",
            "DiscreteVAE",
        ),
        _SHAPE,
    ),
    **dict.fromkeys(
        ("GaussianMixture", "HierarchicalVAE", "LadderVAE", "SemiSupervisedVAE", "VQVAE", "AuxiliaryDGM"), _SHAPE
    ),
    **dict.fromkeys(("Bernoulli", "Categorical", "ContinuousBernoulli", "DiscretizedLogistic", "Poisson"), _SHAPE),
    **{name: _value(6) for name in ("Beta", "LogNormal", "Multinomial", "NegativeBinomial", "StudentT", "VonMises")},
    **{name: _value(6) for name in ("ZeroInflatedNegativeBinomial", "ZeroInflatedPoisson")},
    **{name: _value(6, "shared") for name in ("Laplace", "Normal")},
    **{name: _value(2) for name in ("CouplingFlow", "DiagonalNormal", "FullNormal", "InverseAutoregressiveFlow")},
    **{name: _value(2) for name in ("DirichletPosterior", "LogisticNormalPosterior")},
    **{name: _value(2) for name in ("DirichletPrior", "LogisticNormalPrior")},
    **{name: _value(2) for name in ("PlanarFlow", "RadialFlow", "SplineFlow", "Point", "TopK", "FlatPrior")},
    "LowRankNormal": _value(6),
    "PixelCNN": _value((1, 4, 4)),
    "TopDownVAE": _value((1, 6, 6)),
    **{name: _value(2) for name in ("AutoregressivePrior", "FlowPrior", "LaplacePrior", "MixturePrior")},
    "StandardNormal": _value(2),
    "VampPrior": _value(2, 6),
    "likelihood": _value("bernoulli", 6),
    "posterior": _value("diagonal_normal", 2),
    "prior": _value("standard_normal", 2),
    "as_images": _value(torch.rand(3, 4)),
    "embeddings": (lambda: ({"a": _codes()[0]}, torch.arange(12)), dict),
    "image_grid": _value(torch.rand(3, 4)),
    "image_rows": _value({"a": torch.rand(3, 4)}),
    "reconstructions": _value(torch.rand(3, 4), torch.rand(3, 4)),
}


def _train(folder: Path) -> dict[str, Any]:
    data = {"pair": pv.VAE, "data": X, "init_args": {"hidden": [3]}, "out": folder / "run", "overwrite": True}
    return {**data, "epochs": 1, "seed": 0, "progress": False, "preflight": False}


def _report(folder: Path) -> dict[str, Any]:
    few = {"num_data": 3, "num_samples": 2, "num_simulations": 2}
    if not (folder / "reported").exists():
        pv.train(**{**_train(folder), "out": folder / "reported"})
    return {"runs": folder / "reported", **few}


def _save(folder: Path) -> dict[str, Any]:
    model, guide = _pair()
    return {"path": folder / "pair", "model": model, "guide": guide}


def _load(folder: Path) -> dict[str, Any]:
    made = _save(folder)
    pv.save_pair(**made)
    return made


def _export(folder: Path) -> dict[str, Any]:
    return {"pair": _pair(), "path": folder / "exported", "onnx": False, "x": X}


_IN_FOLDER: dict[str, Callable[[Path], dict[str, Any]]] = {
    "Checkpoints": lambda folder: {"path": folder / "checkpoints"},
    "train": _train,
    "export": _export,
    "report": _report,
    "save_pair": _save,
    "load_pair": _load,
    "load_run": lambda folder: {"path": STORED / "format_2" / "vae"},
    "save": lambda folder: {"figure": pv.plots.image_grid(torch.rand(2, 4)), "path": folder / "figure.png"},
}
