"""Exported programs, read back, against the networks that they were made of."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.exporting import Exported

SIZES = (1, 4, 40)  # of batches, none of which the programs were recorded at
Run = Callable[..., dict[str, Tensor]]


def reloaded(folder: Path, name: str) -> Run:
    run: Run = torch.export.load(folder / f"{name}.pt2").module()
    return run


def shapes(found: Exported, name: str) -> list[str]:
    return [*map(str, found.inputs[name]), *map(str, found.outputs[name])]


def encoder_decoder() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Linear(3, 4), nn.Linear(2, 3)


def pair_of(encoder: nn.Module, decoder: nn.Module) -> tuple[Any, Any]:
    """Two functions: a parameter that is bound to be positive, and data that the decoder needs the number of alone."""

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        scale = pyro.param("width", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(scale * decoder(z), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


@pytest.mark.parametrize("kind", ["perceptrons", "convolutions"])
@torch.no_grad()
def test_a_vae_is_exported_with_a_free_batch_size(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = {"encoder": pv.nets.ConvEncoder, "decoder": pv.nets.ConvDecoder} if kind == "convolutions" else {}
    vae = pv.VAE((1, 8, 8), latent_dim=3, hidden=(16,), **parts)  # type: ignore[arg-type]
    found = pv.export(vae, tmp_path, onnx=False)
    assert shapes(found, "encoder") == ["x (N, 1, 8, 8) float32", "z (N, 3) float32"]
    assert shapes(found, "decoder") == ["z (N, 3) float32", "x (N, 1, 8, 8) float32"]
    encoder, decoder = reloaded(tmp_path, "encoder"), reloaded(tmp_path, "decoder")
    for n in SIZES:
        x = torch.rand(n, 1, 8, 8)
        z = encoder(x)["z"]
        torch.testing.assert_close(z, vae.encode(x).mean)
        torch.testing.assert_close(decoder(z)["x"], vae.decode(z).mean)


@torch.no_grad()
def test_two_functions_are_exported_and_described(tmp_path: Path) -> None:
    encoder, decoder = encoder_decoder()
    pv.export(pair_of(encoder, decoder), tmp_path, torch.randn(20, 3), onnx=False)
    x, z = torch.randn(7, 3), torch.randn(7, 2)
    torch.testing.assert_close(reloaded(tmp_path, "encoder")(x)["z"], encoder(x)[:, :2])
    torch.testing.assert_close(reloaded(tmp_path, "decoder")(z)["x"], 0.5 * decoder(z))
    written = json.loads((tmp_path / "export.json").read_text())
    assert written["programs"]["encoder"] == {
        "files": ["encoder.pt2"],
        "inputs": [{"name": "x", "site": "x", "kind": "data", "shape": ["N", 3], "dtype": "float32"}],
        "outputs": [{"name": "z", "site": "z", "kind": "mean", "shape": ["N", 2], "dtype": "float32"}],
    }
    assert written["versions"]["torch"] == torch.__version__
    names = {name for name, _ in reloaded(tmp_path, "encoder").named_parameters()}  # type: ignore[attr-defined]
    assert names == {"encoder_weight", "encoder_bias"}


@torch.no_grad()
def test_an_argument_beside_the_data_is_an_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = pv.models.ConditionalVAE(6, condition=4, latent_dim=2, hidden=(8,))
    found = pv.export(vae, tmp_path, torch.rand(12, 6), torch.arange(12) % 4, onnx=False)
    assert shapes(found, "decoder") == ["z (N, 2) float32", "condition (N) int64", "x (N, 6) float32"]
    encoder, decoder = reloaded(tmp_path, "encoder"), reloaded(tmp_path, "decoder")
    for n in SIZES:
        x, c = torch.rand(n, 6), torch.randint(4, (n,))
        z = encoder(x, c)["z"]
        torch.testing.assert_close(z, vae.encode(x, c).mean)
        torch.testing.assert_close(decoder(z, c)["x"], vae.decode(z, c).mean)


def counts(x: Tensor, exposure: Tensor) -> None:
    spread = pyro.sample("spread", dist.LogNormal(0.0, 0.1))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.3))
        rate = pyro.sample("rate", dist.Gamma(2.0 + y, spread))
        pyro.sample("x", dist.Poisson(rate * exposure), obs=x)


def test_a_mask_of_missing_values_is_an_input(tmp_path: Path) -> None:
    rows = {"a": [0.5, None, -1.0, 2.5], "b": [0, 2, 1, 3], "c": ["x", "y", "x", "z"]}
    table = pv.data.table(rows, valid=0, test=0)
    vae = pv.TabularVAE(table.columns, latent_dim=2, hidden=(4,))
    with pytest.raises(TypeError, match=r"the pair takes a mask: give export example data with one"):
        pv.export(vae, tmp_path, onnx=False)
    x, mask = table.train.args()
    found = pv.export(vae, tmp_path, x, mask, only="encoder", onnx=False)
    assert [port.name for port in found.inputs["encoder"]] == ["x", "mask"]
    encoder = torch.export.load(tmp_path / "encoder.pt2").module()
    wild = torch.where(mask, x, 7.0)
    assert torch.allclose(encoder(wild, mask)["z"], vae.encode(x, mask).mean)


@torch.no_grad()
def test_a_guide_made_from_a_model_gives_values_of_every_kind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, exposure = torch.poisson(4 * torch.rand(50)), 0.5 + torch.rand(50)
    guide = pv.AmortizedGuide(counts, x, exposure, structure="forward", hidden=(8, 8), seed=0)
    found = pv.export((counts, guide), tmp_path, x, exposure, onnx=False)
    assert [port.kind for port in found.outputs["encoder"]] == [
        "image of the mean of the base distribution",
        "most probable value",
        "probabilities",
        "image of the mean of the base distribution",
    ]
    values = reloaded(tmp_path, "encoder")(x[:4], exposure[:4])
    given = {name: values[name] for name in ("spread", "y", "rate")}
    assert given["spread"].shape == ()
    trace: Any = pyro.poutine.trace(pyro.poutine.condition(guide, given)).get_trace(x[:4], exposure[:4])
    torch.testing.assert_close(values["y_probs"], trace.nodes["y"]["fn"].probs)
    assert torch.equal(values["y"], (values["y_probs"] > 0.5).float())
    draws = trace.nodes["rate"]["fn"].sample((20_000,))  # the image of the mean of one number is the median
    torch.testing.assert_close(values["rate"], draws.median(0).values, rtol=0.05, atol=0.0)
    decoder = reloaded(tmp_path, "decoder")
    torch.testing.assert_close(decoder(values["rate"], exposure[:4])["x"], values["rate"] * exposure[:4])


def test_inner_plates_keep_their_places_and_classes_have_probabilities(tmp_path: Path) -> None:
    """The data are not along the first dimension of the sites, which is that of an inner plate."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("t", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            logits = torch.stack([z, -z], -1)
            pyro.sample("x", dist.Categorical(logits=logits), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("t", 3, dim=-2):
            pyro.sample("z", dist.Normal(x.T.float(), 1.0))

    found = pv.export((model, guide), tmp_path, torch.randint(2, (9, 3)), onnx=False)
    assert shapes(found, "encoder") == ["x (N, 3) int64", "z (3, N) float32"]
    assert shapes(found, "decoder") == ["z (3, N) float32", "x (3, N, 2) float32"]
    z = torch.randn(3, 5)
    probs = reloaded(tmp_path, "decoder")(z)["x"]
    torch.testing.assert_close(probs[..., 0], torch.sigmoid(2 * z))


def test_files_hold_nothing_of_pyro_and_of_this_library(tmp_path: Path) -> None:
    pv.export(pair_of(*encoder_decoder()), tmp_path, torch.randn(8, 3), only="encoder", onnx=False)
    assert {file.name for file in tmp_path.iterdir()} == {"encoder.pt2", "export.json"}
    with zipfile.ZipFile(tmp_path / "encoder.pt2") as archive:
        assert not any(b"pyro" in archive.read(name) for name in archive.namelist())
    program = torch.export.load(tmp_path / "encoder.pt2")
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {target.partition(".")[0] for target in targets} <= {"aten", "<built-in function getitem>"}


@pytest.mark.parametrize("name", ["VAE", "counts"])
@torch.no_grad()
def test_onnx_files_give_the_same_numbers(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    if name == "VAE":
        vae = pv.VAE((1, 8, 8), latent_dim=3, encoder=pv.nets.ConvEncoder, decoder=pv.nets.ConvDecoder)
        pv.export(vae, tmp_path, onnx=True)
        data = [torch.rand(7, 1, 8, 8)]
    else:
        data = [torch.poisson(4 * torch.rand(50)), 0.5 + torch.rand(50)]
        guide = pv.AmortizedGuide(counts, *data, seed=0)
        pv.export((counts, guide), tmp_path, *data, onnx=True)
    session = runtime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    inputs = {port.name: x.numpy() for port, x in zip(session.get_inputs(), data, strict=True)}
    found = dict(zip([port.name for port in session.get_outputs()], session.run(None, inputs), strict=True))
    for key, value in reloaded(tmp_path, "encoder")(*data).items():
        torch.testing.assert_close(torch.as_tensor(found[key]), value, rtol=1e-3, atol=1e-4)


def test_what_onnx_cannot_express_is_said(tmp_path: Path) -> None:
    """The guide of a mixture solves triangular systems, and its decoder is as for every other pair."""
    pytest.importorskip("onnxscript")
    pair = pv.models.GaussianMixture(16, 2)
    with pytest.warns(UserWarning, match=r"encoder.onnx is not written: .*linalg_solve_triangular; encoder.pt2 is"):
        found = pv.export(pair, tmp_path)
    assert {file.name for file in found.files} == {"encoder.pt2", "decoder.pt2", "decoder.onnx", "export.json"}
    with pytest.raises(ValueError, match=r"encoder.onnx: .*linalg_solve_triangular; onnx=False writes encoder.pt2"):
        pv.export(pair, tmp_path, onnx=True)


def test_onnx_that_is_not_installed_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.exporting.writing.onnx_is_installed", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'pyro-vae\[onnx\]'"):
        pv.export(pv.VAE(4, latent_dim=1), tmp_path, onnx=True)


def test_what_is_written_is_compared_with_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.exporting.graphs._with_own_weights", lambda module, names: _disturbed(module))
    with pytest.raises(RuntimeError, match=r"encoder\.pt2 does not give the pair's z for 1 data, so nothing was writ"):
        pv.export(pair_of(*encoder_decoder()), tmp_path / "new", torch.randn(8, 3), onnx=False)
    assert not (tmp_path / "new").exists()


def _disturbed(module: Any) -> Any:
    for name, value in module.named_parameters():
        setattr(module, name, nn.Parameter(value.detach() + 1))
    return module
