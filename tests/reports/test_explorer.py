"""The explorer: what it answers, for pairs of several kinds, and whom it does not answer."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.reports.explorer import questions_of
from pyro_vae.reports.serving import Server
from pyro_vae.reports.space import LatentSpace
from pyro_vae.runs import LoadedRun

DIGITS = {"flatten": True, "binarize": "dynamic"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    pyro.clear_param_store()
    sizes = {"latent_dim": 3, "hidden": (16,)}
    out = tmp_path_factory.mktemp("runs") / "vae"
    return pv.train(pv.VAE, "digits", init_args=sizes, data_args=DIGITS, out=out, epochs=1, seed=0)


@pytest.fixture(scope="module")
def space(run: LoadedRun) -> LatentSpace:
    return LatentSpace(run, num_data=30)


def values(shown: str) -> Tensor:
    """The pixels of a picture."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2])))
    return torch.from_numpy(np.array(image)).float() / 255


class TestSpace:
    def test_codes_are_posterior_means(self, space: LatentSpace, run: LoadedRun) -> None:
        expected = pv.encode(run.guide, space.args[0])
        assert torch.allclose(space.codes.float(), expected)
        assert space.names == ["z[0]", "z[1]", "z[2]"]

    def test_a_decoded_code_is_the_mean_of_the_model(self, space: LatentSpace, run: LoadedRun) -> None:
        code = [0.3, -1.0, 0.5]
        (shown,) = space.decode([code])
        expected = pv.decode(run.model, torch.tensor([code]), space.args[0][:1]).reshape(8, 8)
        assert isinstance(shown, str)
        assert torch.allclose(values(shown), expected, atol=1 / 255)

    def test_a_datum(self, space: LatentSpace) -> None:
        found = space.datum(4)
        assert torch.equal(values(found["x"]), space.args[0][4].reshape(8, 8))
        assert found["code"] == space.codes[4].tolist()
        assert len(found["draws"]) == len(found["draw_codes"]) == 8
        assert space.decode([found["draw_codes"][2]], 4) == [found["draws"][2]]
        assert found["most"] > 0

    def test_between_and_samples(self, space: LatentSpace) -> None:
        found = space.between([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], "linear")
        assert found["codes"][4] == pytest.approx([0.5, 1.0, 1.5])
        assert space.sample(3) == space.sample(3)
        assert space.sample(3) != space.sample(4)

    def test_samples_are_of_the_prior(self, space: LatentSpace) -> None:
        codes = torch.tensor([space.sample(seed)["codes"] for seed in range(60)]).flatten(0, 1)
        assert codes.mean(0).abs().max() < 0.2
        assert (codes.std(0) - 1).abs().max() < 0.2

    def test_attributes_are_differences_of_means(self, space: LatentSpace) -> None:
        assert space.labels is not None
        is_three = space.labels == 3
        expected = space.codes[is_three].mean(0) - space.codes[~is_three].mean(0)
        assert space.describe()["attributes"]["3"] == pytest.approx(expected.tolist())

    @pytest.mark.parametrize("codes", [[[0.0]], [], [[float("nan")] * 3], "x", [[0.0] * 3] * 101, [0.0, 0.0, 0.0]])
    def test_bad_codes(self, space: LatentSpace, codes: Any) -> None:
        with pytest.raises((ValueError, TypeError)):
            space.decode(codes)

    @pytest.mark.parametrize("index", [-1, 30, True, "0", 1.0])
    def test_bad_data(self, space: LatentSpace, index: Any) -> None:
        with pytest.raises(ValueError, match="from 0 to 29"):
            space.datum(index)


def _mixed() -> tuple[Any, Any]:
    """A discrete and a continuous latent, on three columns."""
    net = torch.nn.Linear(3, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5 * torch.ones(len(x))))
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal((y + z).unsqueeze(-1).expand(-1, 3), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            a, b, c = net(x).unbind(-1)
            pyro.sample("y", dist.Bernoulli(logits=a))
            pyro.sample("z", dist.Normal(b, c.exp()))

    return model, guide


def _discrete() -> tuple[Any, Any]:
    net = torch.nn.Linear(3, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5 * torch.ones(len(x))))
            pyro.sample("x", dist.Normal(y.unsqueeze(-1).expand(-1, 3), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=net(x).squeeze(-1)))

    return model, guide


class TestPairsOfOnesOwn:
    def trained(self, pair: tuple[Any, Any], out: Path) -> LoadedRun:
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        options: dict[str, Any] = {"epochs": 1, "seed": 0, "elbo": "trace_graph", "preflight": False}
        return pv.train(pair, x, data_args={"test": 0.5}, out=out / "run", **options)

    def test_a_discrete_latent_is_left_to_the_model(self, tmp_path: Path) -> None:
        space = LatentSpace(self.trained(_mixed(), tmp_path))
        assert space.names == ["z"]
        low, high = (Tensor(shown) for shown in space.decode([[0.0], [2.0]]))
        change = (high - low)[0]
        assert min(abs(change - value) for value in (1, 2, 3)) < 1e-5  # 2, and what the draws of y add
        assert len(space.describe()["map"]) == 20

    def test_a_pair_without_continuous_latents_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no continuous latent"):
            LatentSpace(self.trained(_discrete(), tmp_path))


@pytest.fixture(scope="module")
def server(space: LatentSpace) -> Iterator[Server]:
    made = Server("<p>page</p>", questions_of(space))
    yield made
    made.close()


def fetch(url: str, data: Any = None, **headers: str) -> tuple[int, str]:
    body = None if data is None else (data if isinstance(data, bytes) else json.dumps(data).encode())
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class TestServer:
    def test_serves_the_page_and_answers(self, server: Server, space: LatentSpace) -> None:
        assert fetch(server.url) == (200, "<p>page</p>")
        status, answer = fetch(f"{server.url}decode", {"codes": [[0.0, 0.0, 0.0]]})
        assert status == 200
        assert json.loads(answer)["shown"] == space.decode([[0.0, 0.0, 0.0]])

    def test_is_bound_to_this_machine(self, server: Server) -> None:
        assert server.url.startswith("http://127.0.0.1:")

    def test_who_does_not_know_the_secret_gets_nothing(self, server: Server) -> None:
        root = server.url.rpartition("/")[0].rpartition("/")[0]
        for path in ("/", "/x/", "//", "/decode", f"/{'a' * len(server.secret)}/"):
            assert fetch(f"{root}{path}")[0] == 404
            assert fetch(f"{root}{path}", {"codes": []})[0] == 404

    def test_another_name_of_the_machine_gets_nothing(self, server: Server) -> None:
        assert fetch(server.url, Host="evil.example:80")[0] == 404
        assert fetch(server.url, Host="localhost:80")[0] == 200

    def test_a_form_of_another_page_gets_nothing(self, server: Server) -> None:
        assert fetch(f"{server.url}sample", {"seed": 1}, **{"Content-Type": "text/plain"})[0] == 404

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"{", b'{"codes": NaN}', b'{"codes": [["a"]]}', b'{"codes": {}}', b"{}"]
    )
    def test_bad_questions_are_answered_with_their_error(self, server: Server, body: bytes) -> None:
        status, answer = fetch(f"{server.url}decode", body)
        assert status == 400
        assert json.loads(answer)["error"]

    def test_long_questions_are_refused(self, server: Server) -> None:
        assert fetch(f"{server.url}decode", b"{}", **{"Content-Length": str(2**21)})[0] == 404


def test_explore_returns_a_server(run: LoadedRun) -> None:
    server = pv.explore(run, num_data=25, browser=False, wait=False)
    try:
        status, page = fetch(server.url)
        assert status == 200
        assert "connect-src 'self'" in page.replace("&#x27;", "'")
    finally:
        server.close()
    with pytest.raises(ValueError, match="port"):
        pv.explore(run, port=70000)
    with pytest.raises(ValueError, match="split"):
        pv.explore(run, split="all")  # type: ignore[arg-type]
