"""Inversions of graphs, against the exact posteriors of random linear-Gaussian models on them."""

import random

import pytest
import torch
from torch import Tensor

from pyro_vae.guides.structure import STRUCTURES, invert


def random_graph(seed: int) -> tuple[dict[str, list[str]], list[str]]:
    """A random graph of up to eight sites, and its latents; every latent has an observed descendant."""
    draw = random.Random(seed)
    names = [f"s{i}" for i in range(draw.randint(3, 8))]
    parents = {name: [other for other in names[:i] if draw.random() < 0.45] for i, name in enumerate(names)}
    latents = [name for name in names if draw.random() < 0.65]
    children = {name: [other for other in names if name in parents[other]] for name in names}

    def seen(name: str) -> bool:
        return name not in latents or any(map(seen, children[name]))

    return parents, [name for name in latents if seen(name)]


def covariance(parents: dict[str, list[str]], seed: int) -> Tensor:
    """The covariance of all sites when each is a random linear function of its parents plus noise."""
    generator = torch.Generator().manual_seed(seed)
    names = list(parents)
    weights = torch.zeros(len(names), len(names), dtype=torch.float64)
    for i, name in enumerate(names):
        for parent in parents[name]:
            weights[i, names.index(parent)] = 0.5 + torch.rand((), generator=generator, dtype=torch.float64)
    noise = 0.5 + torch.rand(len(names), generator=generator, dtype=torch.float64)
    inverse = torch.linalg.inv(torch.eye(len(names), dtype=torch.float64) - weights)
    return inverse @ torch.diag(noise) @ inverse.T


def variance_given(cov: Tensor, i: int, given: list[int]) -> float:
    if not given:
        return float(cov[i, i])
    block = cov[given][:, given]
    return float(cov[i, i] - cov[i, given] @ torch.linalg.solve(block, cov[given, i]))


@pytest.mark.parametrize("structure", ["faithful", "forward", "reverse"])
@pytest.mark.parametrize("seed", range(40))
def test_no_independence_is_claimed_that_the_posterior_lacks_and_no_dependency_is_idle(
    seed: int, structure: str
) -> None:
    parents, latents = random_graph(seed)
    names = list(parents)
    cov = covariance(parents, seed)
    found = invert(parents, latents, structure).given
    assert set(found) == set(latents)
    seen = [names.index(name) for name in names if name not in latents]
    earlier: list[int] = []
    for name, given in found.items():
        i = names.index(name)
        chosen = [names.index(other) for other in given]
        assert set(chosen) <= {*earlier, *seen}  # sampled before
        exact = variance_given(cov, i, earlier + seen)
        assert variance_given(cov, i, chosen) == pytest.approx(exact, rel=1e-9)
        for left_out in chosen:
            rest = [other for other in chosen if other != left_out]
            assert variance_given(cov, i, rest) > exact * (1 + 1e-9), f"{name} needs {names[left_out]} for nothing"
        earlier.append(i)


def test_a_chain_is_inverted_with_one_parent_each() -> None:
    chain = {"z1": [], "z2": ["z1"], "z3": ["z2"], "x": ["z3"]}
    assert invert(chain, ["z1", "z2", "z3"]).given == {"z3": ("x",), "z2": ("z3",), "z1": ("z2",)}
    forward = invert(chain, ["z1", "z2", "z3"], "forward").given
    assert forward == {"z1": ("x",), "z2": ("z1", "x"), "z3": ("z2", "x")}


def test_mean_field_depends_on_observations_alone() -> None:
    chain = {"z1": [], "z2": ["z1"], "x": ["z2"], "y": []}
    assert invert(chain, ["z1", "z2"], "mean_field").given == {"z1": ("x",), "z2": ("x",)}


def test_global_latents_come_first() -> None:
    graph = {"z": [], "mu": [], "x": ["z", "mu"]}
    for structure in STRUCTURES:
        assert next(iter(invert(graph, ["z", "mu"], structure, first=["mu"]).given)) == "mu"


def test_an_order_without_coupled_elements_is_preferred() -> None:
    """z is in a plate and its parent u is not: sampled before u, the elements of z would depend on each other."""
    graph, plates = {"u": [], "z": ["u"], "x": ["z"]}, {"z": ["t"], "x": ["t"]}
    found = invert(graph, ["u", "z"], "faithful", plates=plates)
    assert found.given == {"u": ("x",), "z": ("u", "x")}
    assert not any(found.coupled.values())
    assert invert(graph, ["u", "z"], "reverse", plates=plates).coupled["z"] == {"t"}


def test_elements_that_meet_in_a_child_are_coupled_in_every_order() -> None:
    graph, plates = {"z": [], "x": ["z"]}, {"z": ["t"]}
    for structure in STRUCTURES:
        assert invert(graph, ["z"], structure, plates=plates).coupled == {"z": {"t"}}


def test_an_unknown_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown structure 'tree': use one of faithful, forward"):
        invert({"x": []}, [], "tree")
