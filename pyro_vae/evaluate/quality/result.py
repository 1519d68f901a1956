"""The result of `sample_quality`: metrics of the samples, and of held-out data for comparison."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Group
from rich.text import Text
from torch import Tensor
from torch.nn.functional import pad

from pyro_vae.support.pictures import drawable
from pyro_vae.support.results import Result
from pyro_vae.support.serialization import finite
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SampleQuality", "SampleQualityMetrics"]

ROWS = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "class_score": "class score",
    "ms_ssim": "MS-SSIM of pairs",
    "sharpness": "sharpness",
}


@dataclass(frozen=True)
class SampleQualityMetrics:
    """Metrics of one set of images against the data; NaN where a metric does not exist.

    Attributes:
        frechet: Squared Fréchet distance of the features to those of the data; 0 is best.
        kernel, kernel_error: Kernel distance, unbiased, and its standard error.
        precision, recall, density, coverage: See `manifold_scores`.
        class_score: From 1 to the number of classes; NaN without a classifier.
        ms_ssim: Mean similarity of pairs within the set.
        sharpness: Mean strength of edges; noise does not count.
    """

    frechet: float
    kernel: float
    kernel_error: float
    precision: float
    recall: float
    density: float
    coverage: float
    class_score: float
    ms_ssim: float
    sharpness: float


@dataclass(frozen=True, repr=False)
class SampleQuality(Result):
    """Quality of samples.

    Attributes:
        samples: Metrics of the samples against one half of the data.
        data: The same metrics of the other half of the data: the values of perfect samples.
        num_samples, num_data: Images compared, of each kind; `num_data` in each half.
        num_features: F; 0 if pixels were compared.
        images: Some of the samples, `(N, C, H, W)`.
    """

    title: ClassVar[str] = "sample quality"

    samples: SampleQualityMetrics
    data: SampleQualityMetrics
    num_samples: int
    num_data: int
    num_features: int
    images: Tensor = field(compare=False)

    @property
    def warning(self) -> str:
        """The problems of the samples as a set; "" if there are none."""
        found = []
        if self.samples.coverage < 0.5 * self.data.coverage:
            found.append(
                f"the samples cover {self.samples.coverage:.0%} of the data (unseen data: {self.data.coverage:.0%}): "
                "modes are missing, or the samples are off the data"
            )
        if self.samples.ms_ssim > self.data.ms_ssim + 0.15:
            found.append(
                f"too little diversity: pairs of samples are more alike ({self.samples.ms_ssim:.2f}) than of data "
                f"({self.data.ms_ssim:.2f})"
            )
        elif self.samples.ms_ssim < 0.5 * self.data.ms_ssim:
            found.append(
                f"too much diversity: pairs of samples are less alike ({self.samples.ms_ssim:.2f}) than of data "
                f"({self.data.ms_ssim:.2f}), as noise is"
            )
        return "; ".join(found)

    def _rows(self) -> list[dict[str, Any]]:
        return [{"of": "samples", **finite(asdict(self.samples))}, {"of": "data", **finite(asdict(self.data))}]

    def _values(self) -> dict[str, Any]:
        samples, data = self._rows()
        counts = {name: getattr(self, name) for name in ("num_samples", "num_data", "num_features")}
        return {**counts, "samples": samples, "data": data, "warning": self.warning}

    def table(self) -> Group:
        """The metrics as a rich table, with a warning if one is due."""
        source = f"{self.num_features} features" if self.num_features else "pixels"
        title = f"{self.num_samples} samples against {self.num_data} data, by {source}"
        table = new_table(title, "", "samples", "unseen data")
        for name, label in ROWS.items():
            cells = []
            for metrics in (self.samples, self.data):
                value = getattr(metrics, name)
                error = metrics.kernel_error if name == "kernel" and not math.isnan(metrics.kernel_error) else None
                text = "-" if math.isnan(value) else f"{value:.3g}"
                cells.append(text if error is None else f"{text} ± {error:.1g}")
            table.add_row(label, *cells)
        return Group(table, *([Text(f"WARNING: {self.warning}")] if self.warning else []))

    def _draw(self) -> Figure:
        """The samples, and the metrics between 0 and 1 with those of unseen data."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
        n = min(math.isqrt(len(self.images)), 8) or 1
        tiles = pad(self.images[: n * n].cpu(), (1, 1, 1, 1), value=0.5)
        channels, height, width = tiles.shape[1:]
        wall = (
            tiles.reshape(n, n, channels, height, width).permute(0, 3, 1, 4, 2).reshape(n * height, n * width, channels)
        )
        left.imshow(wall.squeeze(-1).numpy(), cmap=None if channels == 3 else "gray", vmin=0, vmax=1)
        left.set_axis_off()
        names = ["precision", "recall", "density", "coverage", "ms_ssim"]
        for offset, label, metrics in ((-0.2, "samples", self.samples), (0.2, "unseen data", self.data)):
            positions = [i + offset for i in range(len(names))]
            widths = drawable((getattr(metrics, name) for name in names), math.nan)
            right.barh(positions, widths, height=0.38, label=label)
        right.set_yticks(range(len(names)), [ROWS[name] for name in names])
        right.set(xlabel="fraction of images; MS-SSIM: mean similarity")
        right.invert_yaxis()
        right.set_title(
            f"Fréchet distance {self.samples.frechet:.3g} (unseen data {self.data.frechet:.3g})", fontsize=10
        )
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=8)
        return figure
