"""A pair's latent space to move in: codes of its data, and what the model makes of any code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate import attribute_vector, decode, encode, interpolate
from pyro_vae.evaluate.latent.sites import as_rows
from pyro_vae.pair.networks import eval_mode
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.tracing import sample_sites, trace_pair
from pyro_vae.plots import as_images
from pyro_vae.reports.likeness import kind_of_data
from pyro_vae.reports.maps import map_of_codes
from pyro_vae.reports.pictures import as_uri
from pyro_vae.runs import LoadedRun
from pyro_vae.support.formats import one_line
from pyro_vae.support.random import fork_rng

__all__ = ["LatentSpace"]

DRAWS = 24  # of a datum's posterior, for the uncertainty
SHOWN = 8  # of these and of samples
MOST_CLASSES = 20
MOST_VALUES = 200  # elements of a datum that is no image

Shown = str | list[float]


class LatentSpace:
    """The continuous latents of a run's pair, asked one question at a time.

    Discrete latents are drawn by the model, with the same noise at each question, so that a picture changes with the
    code alone.

    Args:
        run: The run.
        split: The data whose codes are the map; another split where the run has none of this name.
        num_data: How many of them.
        text: A function from observations to texts, for pairs of sentences.
        root: The folder of the data, if they have moved.
        seed: Seed of all noise.

    Raises:
        ValueError: If the pair has no continuous latent for each datum.
    """

    def __init__(
        self,
        run: LoadedRun,
        *,
        split: str = "test",
        num_data: int = 1000,
        text: Callable[[Tensor], list[str]] | None = None,
        root: str | None = None,
        seed: int = 0,
    ) -> None:
        self.run, self.seed, self.text = run, seed, text
        data = run.data(root)
        names = [split, *(n for n in ("test", "valid", "train") if n != split)]
        self.split = next(name for name in names if getattr(data, name) is not None)
        chosen = getattr(data, self.split)
        n = min(num_data, len(chosen))
        with fork_rng(seed):
            self.args = tuple(each.to(run.device) for each in chosen.args(n))
        self.labels = chosen.y[:n].cpu() if chosen.y is not None and chosen.y.dim() == 1 else None
        self.kind = "text" if text is not None else kind_of_data(self.args[0])
        self.sites, self.names = self._continuous()
        self.codes = encode(run.guide, *self.args, latents=self.sites, seed=seed).double().cpu()

    def _continuous(self) -> tuple[list[str], list[str]]:
        """The continuous latent sites in the guide's order, and the names of their elements."""
        few = tuple(a[:4] for a in self.args)
        with torch.no_grad(), eval_mode(self.run.model, self.run.guide), fork_rng(self.seed):
            traces = trace_pair(self.run.model, self.run.guide, few, {})
        plate = data_plate(traces, len(few[0]))
        in_model = {name for name, site in sample_sites(traces.model) if not site["is_observed"]}
        sites, names = [], []
        for name, site in sample_sites(traces.guide):
            if site["is_observed"] or name not in in_model or site["fn"].support.is_discrete:
                continue
            size = as_rows(site["value"], site, plate).shape[1]
            sites.append(name)
            names += [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
        if not sites:
            raise ValueError(
                "the pair has no continuous latent for each datum to move in; `pyro-vae report` shows what it has"
            )
        return sites, names

    def describe(self) -> dict[str, Any]:
        """What the page needs at the start."""
        low, high = self.codes.quantile(torch.tensor([0.005, 0.995], dtype=torch.float64), 0)
        width = (high - low).clamp(min=1e-3)
        order = self.codes.var(0).argsort(descending=True).tolist() if len(self.codes) > 1 else range(len(self.names))
        found: dict[str, Any] = {
            "name": self.run.path.name,
            "split": self.split,
            "kind": self.kind,
            "names": self.names,
            "order": list(order),
            "low": (low - 0.25 * width).tolist(),
            "high": (high + 0.25 * width).tolist(),
            "mean": self.codes.mean(0).tolist(),
            "num_data": len(self.codes),
            "labels": None if self.labels is None else self.labels.tolist(),
            "attributes": self._attributes(),
        }
        try:
            map_ = map_of_codes(self.codes, None, self.seed)
            found |= {"map": map_.points.tolist(), "map_note": map_.note}
        except ValueError as error:
            points = torch.stack([self.codes[:, 0], torch.zeros(len(self.codes))], 1)
            found |= {"map": points.tolist(), "map_note": one_line(error) if self.codes.shape[1] > 1 else ""}
        return found

    def _attributes(self) -> dict[str, list[float]]:
        """The direction towards the data of each class, where there are a few classes."""
        if self.labels is None:
            return {}
        classes = self.labels.unique().tolist()
        if not 1 < len(classes) <= MOST_CLASSES:
            return {}
        return {str(c): attribute_vector(self.codes, self.labels == c).tolist() for c in classes}

    def decode(self, codes: list[list[float]], index: int = 0) -> list[Shown]:
        """What the model makes of each code; `index` is the datum whose other arguments, such as a label, are used."""
        return self._shown(self._decoded(self._checked(codes), self._index(index)))

    def datum(self, index: int) -> dict[str, Any]:
        """A datum, its code, reconstructions at draws from its posterior, their mean and their standard deviation."""
        index = self._index(index)
        one = tuple(a[index : index + 1] for a in self.args)
        many = tuple(a.expand(DRAWS, *a.shape[1:]) for a in one)
        draws = encode(self.run.guide, *many, latents=self.sites, mean=False, seed=self.seed)
        made = self._decoded(draws, index)
        found = {
            "index": index,
            "label": None if self.labels is None else int(self.labels[index]),
            "code": self.codes[index].tolist(),
            "x": self._shown(one[0])[0],
            "draws": self._shown(made[:SHOWN]),
            "draw_codes": draws[:SHOWN].double().tolist(),
            "scale": draws.double().std(0).tolist(),
        }
        if self.kind == "text":
            return found
        spread = made.double().std(0, keepdim=True)
        most = float(spread.max())
        shown = spread / most if self.kind == "images" and most > 0 else spread
        mean = made.double().mean(0, keepdim=True)
        return {**found, "mean": self._shown(mean)[0], "spread": self._shown(shown)[0], "most": most}

    def sample(self, seed: int) -> dict[str, Any]:
        """Codes from the prior, and what the model makes of them."""
        template = tuple(a[:1].expand(SHOWN, *a.shape[1:]) for a in self.args)
        codes = encode(self.run.model, *template, latents=self.sites, mean=False, seed=seed % 2**31)
        return {"codes": codes.double().tolist(), "shown": self._shown(self._decoded(codes, 0))}

    def between(self, a: list[float], b: list[float], path: str, steps: int = 9) -> dict[str, Any]:
        """Codes from one to another, and what the model makes of them; `path` is "linear" or "spherical"."""
        ends = self._checked([a, b])
        codes = interpolate(ends[0], ends[1], steps, "spherical" if path == "spherical" else "linear")
        return {"codes": codes.tolist(), "shown": self._shown(self._decoded(codes, 0))}

    def _index(self, index: int) -> int:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.codes):
            raise ValueError(f"a datum from 0 to {len(self.codes) - 1} expected")
        return index

    def _checked(self, codes: Any) -> Tensor:
        found = torch.tensor(codes, dtype=torch.float64)
        if found.dim() != 2 or not 1 <= len(found) <= 100 or found.shape[1] != len(self.names):
            raise ValueError(f"codes of {len(self.names)} numbers expected")
        if not bool(found.isfinite().all()):
            raise ValueError("codes must be finite")
        return found

    def _decoded(self, codes: Tensor, index: int) -> Tensor:
        one = tuple(a[index : index + 1] for a in self.args)
        options: Mapping[str, Any] = {"latents": self.sites, "seed": self.seed}
        codes = codes.to(self.args[0].device, torch.get_default_dtype())
        if self.kind == "text":
            return decode(self.run.model, codes, *one, mean=False, **options)
        try:
            return decode(self.run.model, codes, *one, **options)
        except ValueError:  # a distribution without a mean
            return decode(self.run.model, codes, *one, mean=False, **options)

    def _shown(self, x: Tensor) -> list[Any]:
        """Pictures, texts, or the first numbers of data `(N, ...)`."""
        if self.kind == "images":
            return [as_uri(image) for image in as_images(x)]
        if self.kind == "text" and self.text is not None:
            return list(self.text(x.cpu()))
        rows = x.detach().double().cpu().reshape(len(x), -1)[:, :MOST_VALUES].tolist()
        return [[v if math.isfinite(v) else None for v in row] for row in rows]
