"""How does the temperature change a relaxed one-hot variable? The Gumbel-Softmax (Concrete) distribution in pictures.

    python examples/gumbel.py

A one-hot draw with logits log pi is the argmax of log pi + Gumbel noise. A softmax at a temperature in place of the
argmax gives draws that can be differentiated. At low temperatures they are nearly one-hot and their expectation is pi;
at high ones every draw, and the expectation, is close to uniform. But the lower the temperature, the larger the
variance of the gradient. The picture has draws and expectations, as in figure 1 of Jang et al. 2017 (arXiv 1611.01144),
and the gradient of the expectation of a function of the variable, whose exact value is known: its bias and its standard
deviation.

Measured (seed 0, 200,000 draws): of five classes with probabilities from 0.1 to 0.4 the expectation is off by 0.002 at
temperature 0.1, 0.02 at 0.5, 0.06 at 1 and 0.18 at 10. The gradient's bias, in units of its norm, is 0.09, 0.37, 0.59
and 0.94, the standard deviation of one draw's 5.1, 1.7, 0.85 and 0.02.
"""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from pyro.distributions import RelaxedOneHotCategorical
from torch import Tensor

import pyro_vae as pv

from common import make_parser


def exact_gradient(logits: Tensor, values: Tensor) -> Tensor:
    """The gradient of E[(value of the class)^2] with respect to the logits."""
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad((logits.softmax(-1) * values.square()).sum(), logits)[0]


def relaxed_gradients(logits: Tensor, values: Tensor, temperature: float, n: int) -> Tensor:
    """The same from `n` relaxed draws, `(n, C)`: of the squared relaxed value, which is not linear in the draw."""
    each = logits.expand(n, -1).clone().requires_grad_()
    y = RelaxedOneHotCategorical(torch.tensor(temperature), logits=each).rsample()
    return torch.autograd.grad((y @ values).square().sum(), each)[0]


def main() -> None:
    parser = make_parser(__doc__, draws=200_000)
    parser.add_argument("--probs", type=float, nargs="+", default=[0.1, 0.25, 0.4, 0.15, 0.1])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.1, 0.5, 1.0, 10.0])
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    probs = torch.tensor(options.probs) / sum(options.probs)
    logits, size = probs.log(), len(probs)
    columns = len(options.temperatures) + 1
    figure = Figure(figsize=(2.4 * columns + 4, 4.2), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=[2.4 * columns, 4])
    bars, curves = parts
    axes = bars.subplots(2, columns, sharex=True, sharey=True)
    one_hot = torch.nn.functional.one_hot(torch.multinomial(probs, 1), size)[0]
    panels = [("one-hot", one_hot, probs)]
    for temperature in options.temperatures:
        y = RelaxedOneHotCategorical(torch.tensor(temperature), logits=logits).sample((options.draws,))
        panels.append((f"temperature {temperature:g}", y[0], y.mean(0)))
        largest = y.amax(-1).mean()
        gap = (y.mean(0) - probs).abs().max()
        print(
            f"temperature {temperature:5.2f}: mean largest element {largest:.3f}, expectation off by {gap:.3f} at most"
        )
    for i, (title, draw, mean) in enumerate(panels):
        axes[0, i].bar(range(size), draw.numpy(), color="C0")
        axes[0, i].set_title(title, fontsize=10)
        axes[1, i].bar(range(size), mean.numpy(), color="C1")
        axes[1, i].set_xticks(range(size))
        for row in axes[1, i], axes[0, i]:
            row.plot(range(size), probs.numpy(), "k_", ms=12)
    axes[0, 0].set_ylabel("one draw")
    axes[1, 0].set_ylabel("expectation")
    axes[1, columns // 2].set_xlabel("class (lines: its probability)")

    values = torch.linspace(-1.0, 2.0, size)
    target = exact_gradient(logits, values)
    grid = torch.logspace(-1.3, 1.3, 27).tolist()
    bias, spread = [], []
    for temperature in grid:
        found = relaxed_gradients(logits, values, temperature, options.draws)
        bias.append(float((found.mean(0) - target).norm() / target.norm()))
        spread.append(float(found.var(0).sum().sqrt() / target.norm()))
    ax = curves.subplots()
    ax.plot(grid, bias, label="bias")
    ax.plot(grid, spread, label="standard deviation of one draw")
    ax.set(xscale="log", yscale="log", xlabel="temperature", ylabel="relative to the exact gradient")
    ax.set_title("gradient through a draw", fontsize=10)
    ax.legend()
    for temperature in options.temperatures:
        i = min(range(len(grid)), key=lambda k: abs(grid[k] / temperature - 1))
        print(f"temperature {grid[i]:5.2f}: bias {bias[i]:.3f}, s.d. {spread[i]:.2f} of the gradient's norm")
    print(pv.plots.save(figure, options.pictures / "gumbel.png"))


if __name__ == "__main__":
    main()
