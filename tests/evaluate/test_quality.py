"""Sample quality on cases with a known answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.evaluate.quality.distances import class_score, frechet_distance, kernel_distance, manifold_scores
from pyro_vae.evaluate.quality.features import FeatureNet, inception_features, train_features
from pyro_vae.evaluate.quality.images import ms_ssim, pairwise_ms_ssim, sharpness
from pyro_vae.evaluate.quality.parzen import parzen_log_likelihood


def normal(n: int, f: int = 4) -> Tensor:
    return torch.randn(n, f, dtype=torch.float64)


def digits() -> tuple[Tensor, Tensor]:
    data = pv.data.load("digits")
    assert data.train.y is not None
    return data.train.x, data.train.y


def test_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    a = normal(200)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-8)


def test_frechet_distance_of_gaussians() -> None:
    """Shifted and stretched by known amounts, with sample moments made exact: the closed form to rounding."""
    a = normal(500)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.T))).T  # moments 0 and I
    shift, scale = torch.tensor([1.0, -2.0, 0.0, 0.5]), torch.tensor([1.0, 3.0, 0.5, 2.0])
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    assert frechet_distance(a, a * scale + shift) == pytest.approx(expected, rel=1e-9)
    turn = torch.linalg.qr(normal(4))[0]
    assert frechet_distance(a @ turn, (a * scale + shift) @ turn) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    from scipy.linalg import sqrtm

    a, b = normal(300) @ normal(4, 4), normal(300) @ normal(4, 4)
    s, t = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + (s + t - 2 * sqrtm(s @ t).real).trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_unbiased() -> None:
    found = [kernel_distance(normal(60), normal(60), block=60)[0] for _ in range(200)]
    mean, error = torch.tensor(found).mean(), torch.tensor(found).std() / math.sqrt(200)
    assert abs(float(mean)) < 4 * float(error)


def test_kernel_distance_by_hand() -> None:
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    # k(x, y) = (xy + 1)^3: within a 1, within b 343, between (1 + 1 + 27 + 64) / 4
    value, error = kernel_distance(a, b)
    assert value == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)
    assert math.isnan(error)
    assert kernel_distance(normal(2000), normal(2000) + 1)[1] > 0


def test_one_distribution_is_precise_and_covered() -> None:
    scores = manifold_scores(normal(1000, 2), normal(1000, 2), k=5)
    assert scores["precision"] > 0.95
    assert scores["recall"] > 0.95
    assert scores["density"] == pytest.approx(1.0, abs=0.06)
    assert scores["coverage"] == pytest.approx(1 - 2**-5, abs=0.02)


def test_a_missing_mode_costs_recall_and_coverage_only() -> None:
    real = torch.cat([normal(500, 2), normal(500, 2) + 50])
    scores = manifold_scores(real, normal(1000, 2))
    assert scores["precision"] > 0.9
    assert 0.4 < scores["recall"] < 0.52
    assert 0.4 < scores["coverage"] < 0.52


def test_samples_far_away_are_worth_nothing() -> None:
    assert set(manifold_scores(normal(100), normal(100) + 100).values()) == {0.0}


def test_duplicated_samples_have_no_recall() -> None:
    real = normal(500)
    scores = manifold_scores(real, real[:1].expand(500, -1))
    assert scores["precision"] == 1.0
    assert scores["recall"] < 0.01
    assert scores["coverage"] < 0.1


def test_chunks_do_not_matter() -> None:
    real, fake = normal(2300, 2), normal(1100, 2)
    within = torch.cdist(real, fake) <= torch.cdist(real, real).kthvalue(4, 1).values[:, None]
    assert manifold_scores(real, fake, k=3)["coverage"] == float(within.any(1).double().mean())


def test_parzen_window_of_a_gaussian() -> None:
    """A window of scale s around every draw of N(0, I) has the density N(0, (1 + s^2) I) on average."""
    scale, dims = 0.5, 2
    found, error, best = parzen_log_likelihood(normal(4000, dims), normal(50, dims), normal(1000, dims), [scale])
    variance = 1 + scale**2
    expected = -0.5 * dims * (math.log(2 * math.pi * variance) + 1 / variance)
    assert best == scale
    assert found == pytest.approx(expected, abs=4 * error)
    chosen = parzen_log_likelihood(normal(2000, dims), normal(500, dims), normal(500, dims))[2]
    assert 0.1 < chosen < 0.5


def test_class_score() -> None:
    assert class_score(torch.eye(5).repeat(3, 1).log()) == pytest.approx(5.0)
    assert class_score(torch.full((6, 5), 0.2).log()) == pytest.approx(1.0)
    assert class_score(torch.eye(5)[:1].expand(6, -1).log()) == pytest.approx(1.0)
    half = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    expected = math.exp(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))
    assert class_score(half.log()) == pytest.approx(expected)


def test_ms_ssim_of_an_image_with_itself_is_one() -> None:
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(ms_ssim(x, x), torch.ones(3))


def test_ms_ssim_of_constants() -> None:
    """No contrast: only the luminance of the coarsest scale counts, with the weight of that scale."""
    a, b = torch.full((1, 1, 8, 8), 0.2, dtype=torch.float64), torch.full((1, 1, 8, 8), 0.6, dtype=torch.float64)
    c = 0.01**2
    expected = (2 * 0.2 * 0.6 + c) / (0.2**2 + 0.6**2 + c)
    assert float(ms_ssim(a, b)) == pytest.approx(expected)  # one scale at 8 by 8
    weights = 0.2856 / (0.0448 + 0.2856)
    assert float(ms_ssim(a.repeat(1, 1, 2, 2), b.repeat(1, 1, 2, 2))) == pytest.approx(expected**weights)


def test_ms_ssim_falls_with_noise() -> None:
    x = torch.rand(4, 1, 28, 28)
    found = [float(ms_ssim(x, (x + s * torch.randn_like(x)).clamp(0, 1)).mean()) for s in (0.05, 0.2, 1.0)]
    assert 1 > found[0] > found[1] > found[2] > 0


def test_diversity_of_duplicates_and_of_noise() -> None:
    assert pairwise_ms_ssim(torch.rand(1, 1, 8, 8).expand(20, -1, -1, -1), pairs=50) == pytest.approx(1.0)
    assert pairwise_ms_ssim(torch.rand(20, 1, 28, 28), pairs=50) < 0.1


def test_sharpness_by_hand() -> None:
    assert float(sharpness(torch.full((1, 1, 8, 8), 0.5))) == 0.0
    rows, columns = torch.arange(8.0)[:, None], torch.arange(8.0)
    slope = (0.3 * columns + 0.4 * rows).expand(1, 1, 8, 8)
    assert float(sharpness(slope)) == pytest.approx(0.25, rel=1e-4)  # one direction: the squared gradient
    bowl = (rows - 3.5).square() + (columns - 3.5).square()
    # all directions around the middle: what is left is far below the mean squared gradient of 4 E r^2
    assert float(sharpness(bowl[None, None])) < 0.8 * 4 * float(bowl[1:-1, 1:-1].mean())
    board = (rows + columns) % 2
    assert float(sharpness(board[None, None])) == 0.0
    x = torch.rand(4, 3, 12, 9)
    torch.testing.assert_close(sharpness(x.transpose(2, 3)), sharpness(x))
    torch.testing.assert_close(sharpness(0.5 * x), 0.25 * sharpness(x))


def test_noise_is_not_sharp_and_blur_lowers_it() -> None:
    x = digits()[0][:200]
    plain = float(sharpness(x).mean())
    for image in (x, nn.functional.interpolate(x, scale_factor=3)):
        blurred = nn.functional.avg_pool2d(nn.functional.pad(image, (1, 1, 1, 1)), 3, 1)
        assert float(sharpness(blurred).mean()) < 0.75 * float(sharpness(image).mean())
        for noise in (0.05, 0.1, 0.2):
            for clean in (image, blurred):
                noisy = (clean + noise * torch.randn_like(clean)).clamp(0, 1)
                assert float(sharpness(noisy).mean()) < 1.02 * float(sharpness(clean).mean())
    assert float(sharpness(torch.rand(200, 1, 8, 8)).mean()) < 0.25 * plain
    assert float(sharpness(torch.rand(200, 1, 8, 8).bernoulli()).mean()) < 0.7 * plain


def test_the_feature_net_learns_and_is_stored(tmp_path: Path) -> None:
    x, y = digits()
    before = torch.get_rng_state()
    net = train_features(x[:1000], y[:1000], steps=150, path=tmp_path / "features.safetensors", seed=0)
    assert torch.equal(before, torch.get_rng_state())
    with torch.no_grad():
        assert float((net(x[1000:]).argmax(1) == y[1000:]).float().mean()) > 0.85
    file = tmp_path / "features.safetensors"
    again = train_features(x[:1000], y[:1000], steps=150, path=file, seed=0)
    torch.testing.assert_close(again.features(x[:5]), net.features(x[:5]))
    # of other data or options its values would be other ones
    for data, steps in (((x[:999], y[:999]), 150), ((x[:1000], 9 - y[:1000]), 150), ((x[:1000], y[:1000]), 149)):
        with pytest.raises(ValueError, match=r"features\.safetensors is of other data or options \((data|steps) was"):
            train_features(*data, steps=steps, path=file, seed=0)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"features\.safetensors is damaged: its checksum"):
        train_features(x[:1000], y[:1000], steps=150, path=file, seed=0)
    save_file(net.state_dict(), file)  # as an earlier version did
    with pytest.raises(ValueError, match="an earlier version wrote it, and did not say of which"):
        train_features(x[:1000], y[:1000], steps=150, path=file, seed=0)
    save_file({"a": x[:1]}, file)
    with pytest.raises(ValueError, match="it holds another kind of net"):
        train_features(x[:1000], y[:1000], steps=150, path=file, seed=0)
    with pytest.raises(ValueError, match="were expected"):
        train_features(x.flatten(1), y, seed=0)


def test_quality_tells_good_samples_from_bad_ones(tmp_path: Path) -> None:
    x, y = digits()
    net = train_features(x[:600], y[:600], steps=60, seed=0)
    data, fresh = x[600:1000], x[1000:1200]
    good = pv.sample_quality(data, fresh, net, seed=0)
    blurred = pv.sample_quality(data, nn.functional.avg_pool2d(fresh, 3, 1, 1), net, seed=0)
    one = pv.sample_quality(data, fresh[:1].expand(200, -1, -1, -1), net, seed=0)
    noise = pv.sample_quality(data, torch.rand(200, 1, 8, 8), net, seed=0)
    assert good.warning == ""
    assert good.samples.frechet < 3 * good.data.frechet
    for bad in (blurred, one, noise):
        assert bad.samples.frechet > 3 * good.samples.frechet
        assert bad.samples.kernel > good.samples.kernel
    assert blurred.samples.sharpness < 0.5 * blurred.data.sharpness
    assert "too little diversity" in one.warning
    assert "cover" in one.warning
    assert one.samples.class_score == pytest.approx(1.0)
    assert noise.samples.ms_ssim < noise.data.ms_ssim
    text = repr(good)
    assert "200 samples against 200 data, by 64 features" in text
    assert good.save(tmp_path / "q.csv").read_text().startswith("of,frechet")
    assert json.loads(good.save(tmp_path / "q.json").read_text())["data"]["of"] == "data"
    pv.plots.save(good.plot(), tmp_path / "q.png")


def test_a_network_of_ones_own_and_pixels() -> None:
    x = torch.rand(60, 1, 8, 8)
    plain = pv.sample_quality(x[:40], x[40:], seed=0)
    assert plain.num_features == 0
    assert math.isnan(plain.samples.class_score)
    assert "by pixels" in repr(plain)
    own = pv.sample_quality(x[:40], x[40:], nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), seed=0)
    assert own.num_features == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.flatten(1), "images .N, C, H, W. of one shape"),
        (lambda x: x + 1, "values outside"),
        (lambda x: x[:3], "are too few"),
    ],
)
def test_what_cannot_be_compared(change: Any, message: str) -> None:
    x = torch.rand(60, 1, 8, 8) * 0.9
    with pytest.raises(ValueError, match=message):
        pv.sample_quality(x[:40], change(x[40:]), seed=0)


def test_features_that_are_not_finite_are_named() -> None:
    bad = normal(5)
    bad[1, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 5 rows"):
        frechet_distance(bad, normal(5))
    with pytest.raises(ValueError, match="more than k rows"):
        manifold_scores(normal(5), normal(5), k=5)


def test_inception_takes_gray_images(tmp_path: Path) -> None:
    from torchvision.models import inception_v3

    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), tmp_path / "w.pth")
    net: Any = inception_features(tmp_path / "w.pth")
    x = torch.rand(2, 1, 28, 28)
    assert net.features(x).shape == (2, 2048)
    assert net(x).shape == (2, 1000)


def test_feature_net_shapes() -> None:
    net = FeatureNet((1, 28, 28), 10)
    assert net(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert net.features(torch.zeros(3, 1, 28, 28)).shape == (3, 64)


def test_quality_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["train", "--epochs", "1", "--num_samples", "5", "--model.hidden", "[8]", "--out", str(tmp_path / "run")])
        == 0
    )
    out = tmp_path / "run"
    words = ["quality", str(out), "--num_data", "60", "--feature_steps", "5"]
    capsys.readouterr()
    assert main(words) == 0
    assert "30 samples against 30 data, by 64 features" in capsys.readouterr().out
    first = json.loads((out / "quality.json").read_text())
    assert (out / "quality.png").exists()
    assert (out / "features.safetensors").exists()
    assert main(words) == 0
    assert json.loads((out / "quality.json").read_text()) == first
