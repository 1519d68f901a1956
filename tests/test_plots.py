"""Pictures: what counts as an image, and what is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from pyro_vae import plots
from pyro_vae.support.pictures import COLORS
from pyro_vae.training.history import Epoch, History


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 784), (5, 1, 28, 28)),
        ((5, 3072), (5, 3, 32, 32)),
        ((5, 6, 7), (5, 1, 6, 7)),
        ((5, 1, 6, 7), (5, 1, 6, 7)),
        ((1, 3, 6, 7), (1, 3, 6, 7)),
    ],
)
def test_as_images(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    images = plots.as_images(x)
    assert images.shape == expected
    assert torch.equal(images.reshape(shape), x)


def test_as_images_clips() -> None:
    assert plots.as_images(torch.tensor([[[-1.0, 0.5, 2.0]]])).flatten().tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("shape", [(5, 783), (5, 2, 6, 7), (5, 1, 1, 6, 7), (784,), (0, 784), (0, 1, 6, 7)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"not images: expected \(N, 1 or 3, H, W\)"):
        plots.as_images(torch.zeros(shape))


def test_nan_is_refused() -> None:
    x = torch.zeros(3, 4)
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of 3 images hold NaN"):
        plots.as_images(x)


def _pixels(figure: Figure, path: Path) -> torch.Tensor:
    return torch.from_numpy(imread(plots.save(figure, path))[..., :3])


def test_grid_shows_every_image_in_order(tmp_path: Path) -> None:
    x = torch.linspace(0, 1, 5).reshape(5, 1, 1, 1).expand(5, 1, 28, 28)
    picture = _pixels(plots.image_grid(x, columns=3), tmp_path / "deep" / "grid.png")
    tile, gap = 28 * 3, 5
    assert picture.shape == (2 * tile + 3 * gap, 3 * tile + 4 * gap, 3)
    centers = [
        (gap + tile // 2 + r * (tile + gap), gap + tile // 2 + c * (tile + gap)) for r in (0, 1) for c in range(3)
    ]
    shades = [float(picture[row, column, 0]) for row, column in centers]
    assert shades == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1], abs=0.01)  # the place of the missing sixth is white
    assert float(picture[0, 0, 0]) == pytest.approx(0.5, abs=0.01)  # the line around the images


def test_colours_and_pixels_are_kept(tmp_path: Path) -> None:
    x = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).repeat(1, 1, 2, 2)
    x[0, :, 1, 1] = torch.tensor([0.0, 0.0, 1.0])
    picture = _pixels(plots.image_grid(x), tmp_path / "one.png")[5:-5, 5:-5]
    assert picture.shape == (84, 84, 3)
    assert picture[:42].unique(dim=1).tolist() == [[[1.0, 0.0, 0.0]]] * 42
    assert picture[42:, 42:].reshape(-1, 3).unique(dim=0).tolist() == [[0.0, 0.0, 1.0]]


def test_reconstructions_stand_below_their_inputs(tmp_path: Path) -> None:
    figure = plots.reconstructions(torch.zeros(3, 16), torch.ones(3, 16), columns=2)
    picture = _pixels(figure, tmp_path / "pairs.png")
    rows = [float(picture[5 + 42 + r * 89, -5 - 84 - 5 - 42, 0]) for r in range(4)]
    assert rows == [0, 1, 0, 1]
    assert [text.get_text() for text in figure.axes[0].texts] == ["input", "reconstruction"] * 2
    assert not figure.axes[0].axison


def test_reconstructions_must_match() -> None:
    with pytest.raises(ValueError, match="do not match"):
        plots.reconstructions(torch.zeros(3, 16), torch.zeros(2, 16))


@pytest.mark.parametrize("columns", [-1, -7])
def test_columns_must_be_positive(columns: int) -> None:
    with pytest.raises(ValueError, match=f"columns must be at least 1, got {columns}"):
        plots.image_grid(torch.zeros(3, 16), columns=columns)


def test_a_title_stands_above(tmp_path: Path) -> None:
    plain = _pixels(plots.image_grid(torch.zeros(4, 16)), tmp_path / "plain.png")
    titled = _pixels(plots.image_grid(torch.zeros(4, 16), title="four"), tmp_path / "titled.png")
    assert titled.shape[1] == plain.shape[1]
    assert 20 < titled.shape[0] - plain.shape[0] < 60
    assert titled[: titled.shape[0] - plain.shape[0]].min() < 0.5


@pytest.mark.parametrize("valid", [None, -1.5])
def test_history_is_drawn(tmp_path: Path, valid: float | None) -> None:
    epochs = [Epoch(n, n, 1.0, -1.0, valid, -1.0, 0.0, 1.0, 1e-3, 0.1) for n in (1, 2)]
    figure = History(epochs, best=2).plot()
    assert figure.axes[0].get_xlabel() == "epoch"
    assert plots.save(figure, tmp_path / "history.png").stat().st_size > 1000


def test_rows_have_their_names_and_their_own_lengths(tmp_path: Path) -> None:
    figure = plots.image_rows({"one": torch.zeros(2, 16), "two": torch.ones(3, 16)}, title="rows")
    assert [text.get_text() for text in figure.axes[0].texts] == ["one", "two"]
    picture = _pixels(plots.image_rows({"one": torch.zeros(2, 16), "two": torch.ones(3, 16)}), tmp_path / "rows.png")
    assert float(picture[5 + 42, -5 - 84 - 42 - 5, 0]) == 0  # the second of the first row
    assert float(picture[5 + 42, -5 - 42, 0]) == 1  # where it has no third
    with pytest.raises(ValueError, match="images of different shapes"):
        plots.image_rows({"one": torch.zeros(2, 16), "two": torch.ones(3, 25)})


def test_embeddings_are_drawn_by_class(tmp_path: Path) -> None:
    labels = torch.arange(3).repeat(4)
    figure = plots.embeddings({"a": torch.rand(12, 2), "b": torch.rand(12, 2)}, labels, title="both")
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    assert [len(ax.collections) for ax in figure.axes] == [3, 3]
    assert plots.save(figure, tmp_path / "embeddings.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"points 'a' have shape \(12, 3\)"):
        plots.embeddings({"a": torch.rand(12, 3)}, labels)
    with pytest.raises(ValueError, match="30 classes cannot be told apart"):
        plots.embeddings({"a": torch.rand(30, 2)}, torch.arange(30))


def test_one_panel_can_be_part_of_a_figure() -> None:
    figure = Figure()
    left, middle, right = figure.subplots(1, 3)
    assert plots.image_grid(torch.rand(4, 8, 8), title="four", ax=left) is figure
    assert plots.reconstructions(torch.rand(4, 8, 8), torch.rand(4, 8, 8), columns=2, ax=middle) is figure
    assert plots.embeddings({"codes": torch.randn(6, 2)}, torch.tensor([0, 1] * 3), ax=right) is figure
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 0]
    assert left.get_title() == "four"
    assert len(right.collections) == 2
    with pytest.raises(ValueError, match="one set of points, got 2"):
        plots.embeddings(dict.fromkeys("ab", torch.randn(6, 2)), torch.tensor([0, 1] * 3), ax=right)


def test_the_style_for_all_figures_of_a_process() -> None:
    import matplotlib

    with matplotlib.rc_context():
        plots.use_style()
        lines = [Figure().subplots().plot([0, 1])[0] for _ in range(2)]
        assert not lines[0].axes.spines["top"].get_visible()
    assert lines[0].get_color() == "#0072b2"
    assert matplotlib.rcParams["axes.spines.top"]


def test_one_style_that_leaves_the_users_alone() -> None:
    import matplotlib

    def settings() -> dict[str, object]:
        return {name: value for name, value in matplotlib.rcParams.items() if name != "backend"}  # found when asked

    before = settings()
    epochs = [Epoch(i, i, 1.0, -2.0 + i, -2.5 + i, 0.0, 0.0, 1.0, 1e-3, 1.0) for i in (1, 2)]
    (ax,) = History(epochs).plot().axes
    assert settings() == before
    assert [line.get_color() for line in ax.lines[:2]] == ["#0072b2ff", "#d55e00ff"]
    assert not ax.spines["top"].get_visible()


def test_colors_differ_for_every_vision() -> None:
    """All ten, and the first six where red and green look the same."""
    rgb = torch.tensor([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLORS])
    as_one = rgb @ torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    for colors in (rgb, as_one[:6]):
        distance = torch.cdist(colors, colors) + torch.eye(len(colors))
        assert distance.min() > 0.12
