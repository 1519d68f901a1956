from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator

import pyro
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.elbo import Reinforce
from pyro_vae.models import GaussianMixture
from pyro_vae.oracles import BitsAndClasses, Discrete, Grid, LinearGaussian, TopDownChain
from pyro_vae.pair.names import unique_name, without_count

PAIRS = (lambda: pv.VAE(4, 2, hidden=(3,), likelihood="normal"), lambda: GaussianMixture(4, 2), LinearGaussian)


class Thing:
    pass


def test_of_one_object_it_stays() -> None:
    thing = Thing()
    assert unique_name(thing) == unique_name(thing)
    assert unique_name(thing).startswith("Thing_")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_its_own(copied: object) -> None:
    thing = Thing()
    assert unique_name(copied(thing)) != unique_name(thing)  # type: ignore[operator]


def test_an_object_in_the_place_of_one_that_is_gone() -> None:
    names, places = set(), set()
    for _ in range(50):
        thing = Thing()
        names.add(unique_name(thing))
        places.add(id(thing))
        del thing
    assert len(places) < 50, "Python no longer uses an address again: this test shows nothing"
    assert len(names) == 50


@pytest.fixture
def quick_collections() -> Iterator[None]:
    """Collections of garbage that pass over what was there before: all that was imported takes a second to look at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collections")
@pytest.mark.parametrize("make", [*PAIRS, TopDownChain, Discrete, BitsAndClasses, Grid])
def test_pairs_one_after_another_train_their_own_parameters(make: object) -> None:
    for _ in range(20):
        pair = make()  # type: ignore[operator]
        x = pair.simulate(4) if hasattr(pair, "simulate") else torch.randn(4, 4)
        trace = pyro.poutine.trace(pair.model).get_trace(x)
        found = {site["value"].unconstrained() for site in trace.nodes.values() if site["type"] == "param"}
        assert found
        assert found <= set(pair.parameters())
        del pair, trace, found
        gc.collect()


@pytest.mark.usefixtures("quick_collections")
def test_baselines_one_after_another_train_their_own_parameters() -> None:
    pair = LinearGaussian()
    x = pair.simulate(4)
    for _ in range(20):
        baseline = nn.Linear(4, 1).double()
        svi = pv.SVI(pair.model, pair.guide, loss=Reinforce(baseline=baseline, num_particles=2))
        svi.step(x)
        assert set(baseline.parameters()) <= set(svi.params.values())
        del baseline, svi
        gc.collect()


def test_names_that_users_gave_are_not_shortened() -> None:
    name = unique_name(Thing())
    assert without_count(f"{name}.encoder$$$0.weight") == "Thing.encoder$$$0.weight"
    assert without_count(f"{name}$$$weight") == "Thing$$$weight"
    assert without_count("Thing_1000000.encoder$$$weight") == "Thing_1000000.encoder$$$weight"
    assert without_count("layer_3$$$weight") == "layer_3$$$weight"
    assert without_count("rate_2") == "rate_2"


def test_the_store_that_names_are_for() -> None:
    first, second = pv.VAE(4, 2, hidden=(3,)), pv.VAE(4, 2, hidden=(3,))
    for vae in (first, second):
        vae.model(torch.ones(2, 4))
    assert len(set(pyro.get_param_store().keys())) == 2 * len(list(first.decoder.parameters()))
