"""`fit(threads="auto")` takes the faster of one thread and all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import pyro_vae as pv
from pyro_vae.training import threads as module
from pyro_vae.training.threads import Threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("one", "two", "expected"), [(0.001, 0.02, 1), (0.02, 0.012, 2)])
def test_the_faster_is_chosen(
    one: float, two: float, expected: int, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    used = []
    with Threads("auto").in_use() as threads:
        for i in range(30):
            used.append(torch.get_num_threads())
            now[0] += (one if torch.get_num_threads() == 1 else two) + (0.5 if i % module.BLOCK == 0 else 0.0)
            threads.step()
        assert torch.get_num_threads() == threads.chosen == expected
        assert repr(threads).startswith(f"{expected} thread")
        assert "1.00 ms a step with 1" in repr(threads) or expected == 2
    assert torch.get_num_threads() == 2
    assert used[:24] == [2, 2, 2, 2, 1, 1, 1, 1] * 3
    assert set(used[24:]) == {expected}


def test_fit_says_what_it_has_chosen(two_threads: None) -> None:
    vae = pv.VAE(4, latent_dim=2, hidden=(3,))
    x = torch.rand(40, 4).round()
    seen = []

    def note(state: pv.training.State) -> None:
        seen.append(torch.get_num_threads())

    history = pv.fit(
        vae.model, vae.guide, x, epochs=3, batch_size=4, threads="auto", compile=False, progress=False, callbacks=[note]
    )
    assert history.threads in (1, 2)
    assert seen[-1] == history.threads
    pv.fit(vae.model, vae.guide, x, epochs=1, batch_size=4, threads=1, progress=False, callbacks=[note])
    assert seen[-1] == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("bad", [0, "all", 1.5])
def test_bad_numbers(bad: object) -> None:
    vae = pv.VAE(4, latent_dim=2, hidden=(3,))
    with pytest.raises((TypeError, ValueError), match="threads must be"):
        pv.fit(vae.model, vae.guide, torch.rand(8, 4).round(), threads=bad, progress=False)  # type: ignore[arg-type]
