"""Sources, splits, binarization and batches of pyro_vae.data."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_vae.data import NAMES, Data, Split, batches_of, load


def needs(folder: str) -> pytest.MarkDecorator:
    root = os.environ.get("PYRO_VAE_DATA")
    present = root is not None and (Path(root) / folder / "raw").is_dir()
    return pytest.mark.skipif(not present, reason=f"PYRO_VAE_DATA is unset or holds no {folder}/raw")


def numbered(n: int, *shape: int) -> Tensor:
    """Datum i is filled with the number i / n."""
    return (torch.arange(n) / n).reshape(n, *[1] * len(shape)).expand(n, *shape).clone()


def parts(data: Data) -> list[Split]:
    assert data.valid is not None
    assert data.test is not None
    return [data.train, data.valid, data.test]


def held_out(data: Data) -> Split:
    assert data.test is not None
    return data.test


class Pairs(Dataset):
    """A map-style data set over any list of items."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        return self.items[i]


# --- built-in sets


def test_digits() -> None:
    data = load("digits")
    assert repr(data) == "Data('digits', 1294 train, 144 valid, 359 test, shape (1, 8, 8), binarize='none')"
    pixels = torch.cat([part.x for part in parts(data)])
    assert pixels.shape == (1797, 1, 8, 8)
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert torch.equal(pixels * 16, (pixels * 16).round())
    labels = torch.cat([part.y for part in parts(data) if part.y is not None])
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        pytest.param("mnist", 7, marks=needs("MNIST")),
        pytest.param("fashion_mnist", 9, marks=needs("FashionMNIST")),
    ],
)
def test_official_test_set(name: str, label: int) -> None:
    data = load(name, valid=6000, test=0)  # `test` says nothing about a set that has its own
    assert [len(part) for part in parts(data)] == [54000, 6000, 10000]
    assert data.shape == (1, 28, 28)
    assert 0.12 < data.mean.mean() < 0.30
    test = held_out(data)
    assert test.y is not None
    assert test.y[0] == label
    assert test.x.max() == 1


@needs("MNIST")
def test_root_is_only_read_when_the_files_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "MNIST").symlink_to(Path(os.environ["PYRO_VAE_DATA"]) / "MNIST")
    tmp_path.chmod(0o555)

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a folder was created")

    monkeypatch.setattr(os, "makedirs", forbidden)
    monkeypatch.setattr(os, "mkdir", forbidden)
    monkeypatch.setenv("PYRO_VAE_DATA", "nowhere")
    try:
        assert len(load("mnist", root=tmp_path, flatten=True).train) == 54000
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("name", ["kmnist", "cifar10", "omniglot"])
def test_a_set_that_cannot_be_downloaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    def unreachable(*args: object) -> None:
        raise URLError("no route to host")

    for kind in ("KMNIST", "CIFAR10", "Omniglot"):
        monkeypatch.setattr(getattr(torchvision.datasets, kind), "download", unreachable)
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=rf"'{name}' is not.*{tmp_path.name}.*no route.*PYRO_VAE_DATA.*'digits'"
    ):
        load(name)


def test_cifar10_and_omniglot_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    class Cifar:
        def __init__(self, root: Path, train: bool) -> None:
            self.data = np.full((10 if train else 4, 32, 32, 3), [0, 51, 255], dtype=np.uint8)
            self.targets = list(range(len(self.data)))

        def __len__(self) -> int:
            return len(self.data)

    class Omniglot(Pairs):
        def __init__(self, root: Path, background: bool) -> None:
            super().__init__([(Image.new("L", (105, 105), 255), i) for i in range(10 if background else 4)])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar)
    monkeypatch.setattr(torchvision.datasets, "Omniglot", Omniglot)
    cifar = load("cifar10", root=tmp_path, valid=0)
    assert (len(cifar.train), len(held_out(cifar)), cifar.shape) == (10, 4, (3, 32, 32))
    assert torch.allclose(cifar.mean.mean((1, 2)), torch.tensor([0.0, 0.2, 1.0]))
    omniglot = load("omniglot", root=tmp_path, valid=0)
    assert (len(omniglot.train), len(held_out(omniglot)), omniglot.shape) == (10, 4, (1, 105, 105))


def test_names() -> None:
    assert NAMES == ("digits", "sprites", "mnist", "fashion_mnist", "kmnist", "cifar10", "omniglot")
    with pytest.raises(ValueError, match=r"unknown data set 'Fashion-MNST': did you mean 'fashion_mnist'.*digits"):
        load("Fashion-MNST")
    with pytest.raises(ValueError, match="unknown data set 'zzzz': known names"):
        load("zzzz")
    with pytest.raises(ValueError, match="unknown data set ''"):
        load("")


# --- a user's own data


def test_tensors_and_arrays() -> None:
    values = torch.randn(20, 5, dtype=torch.float64)
    for source in (values, values.numpy(), values.numpy().astype(">f8"), values.requires_grad_()):
        data = load(source, valid=0, test=0)
        assert data.valid is data.test is data.train.y is None
        assert torch.equal(data.train.x, values.detach().float())  # nothing cut off: the order is kept
    data = load(values, test=5, valid=0.2)
    assert [len(part) for part in parts(data)] == [12, 3, 5]


def test_a_source_is_copied() -> None:
    source = torch.zeros(10, 3)
    data = load(source, valid=0, test=0)
    source.fill_(1)
    assert data.train.x.sum() == 0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 6), (6,)),
        ((10, 8, 6), (1, 8, 6)),
        ((10, 8, 6, 1), (1, 8, 6)),
        ((10, 8, 6, 3), (3, 8, 6)),
        ((10, 8, 6, 4), (4, 8, 6)),
        ((10, 3, 8, 6), (3, 8, 6)),
        ((10, 3, 8, 4), (3, 8, 4)),
        ((10, 5, 8, 6), (5, 8, 6)),
    ],
)
def test_uint8_layout(shape: tuple[int, ...], expected: tuple[int, ...], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x=pixels)
    for source in (pixels, torch.from_numpy(pixels), tmp_path / "own.npz", str(tmp_path / "own.npz")):
        data = load(source, test=0, valid=0)
        assert data.shape == expected
        assert data.train.x.is_contiguous()
        if len(shape) == 4 and shape[1:] != expected:
            assert torch.equal(
                data.train.x[:, 1 % expected[0]] * 255, torch.from_numpy(pixels[..., 1 % shape[3]]).float()
            )
        flat = load(source, test=0, valid=0, flatten=True)
        assert torch.equal(flat.train.x, data.train.x.reshape(10, -1))
        assert flat.shape == (data.train.x[0].numel(),)


def test_npz_with_labels_and_test_set(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((2, 30, 4)), np.arange(30)
    np.savez(tmp_path / "own.npz", x_train=x[0], y_train=y[:, None], x_test=x[1, :7], y_test=y[:7].astype(float))
    data = load(tmp_path / "own.npz", valid=6)
    assert repr(data) == "Data('own.npz', 24 train, 6 valid, 7 test, shape (4,), binarize='none')"
    assert torch.equal(held_out(data).x, torch.tensor(x[1, :7]).float())
    for part in parts(data)[:2]:  # labels follow their data
        assert part.y is not None
        assert torch.equal(part.x, torch.tensor(x[0]).float()[part.y])
    np.savez(tmp_path / "plain.npz", x=x[0], y=y)
    plain = load(tmp_path / "plain.npz")
    assert [len(part) for part in parts(plain)] == [22, 2, 6]
    assert plain.train.y is not None


def test_bad_npz(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    x = np.zeros((10, 3))
    with pytest.raises(FileNotFoundError, match=r"no file or folder at .*own\.npz"):
        load(path)
    for missing in ("own.npz", "some/folder"):
        with pytest.raises(FileNotFoundError, match="no file or folder"):
            load(missing)
    for content, message in (
        ({"images": x}, r"has the keys \['images'\]; expected x or x_train"),
        ({"x": x, "x_train": x}, "not both"),
        ({"x": x, "y": np.arange(9)}, r"10 data, but labels of shape \(9,\); expected \(10,\)"),
        ({"x": x, "y": np.full(10, 0.5)}, "not whole numbers"),
        ({"x": x, "y": np.full(10, np.inf)}, "not whole numbers"),
        ({"x": x, "x_test": x[:, :2]}, r"training data of shape \(3,\) and test data of shape \(2,\)"),
        ({"x": np.array([None, x], dtype=object)}, "allow_pickle=False"),
    ):
        np.savez(path, **content)
        with pytest.raises(ValueError, match=message):
            load(path)
    path.write_text("x")
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        load(path)


def test_datasets() -> None:
    x, y = numbered(20, 3), torch.arange(20)
    data = load(TensorDataset(x, y))
    assert data.name == "TensorDataset"
    for part in parts(data):
        assert part.y is not None
        assert torch.equal(part.x, x[part.y])
    assert load(TensorDataset(x)).train.y is None
    grey = [Image.new("L", (4, 6), i) for i in range(20)]
    assert load(Pairs(grey)).shape == (1, 6, 4)
    mixed = load(Pairs([(Image.new("RGB", (4, 6), (0, 51, 255)), 0), (grey[10], 1)]), valid=0, test=0)
    assert mixed.shape == (3, 6, 4)
    assert torch.allclose(mixed.train.x[:, :, 0, 0] * 255, torch.tensor([[0.0, 51, 255], [10, 10, 10]]))
    arrays = load(Pairs([(np.full((6, 4, 3), i, dtype=np.uint8), i) for i in range(20)]))
    assert arrays.shape == (3, 6, 4)
    factors = load(Pairs([(torch.zeros(3), (i, 2 * i)) for i in range(20)]), valid=0, test=0)
    assert factors.train.y is not None
    assert factors.train.y.shape == (20, 2)


def test_bad_datasets() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(torch.zeros(3, 2))

    with pytest.raises(TypeError, match="Stream has no length; expected a map-style Dataset"):
        load(Stream())
    x = torch.zeros(3)
    of_wrong_type: list[tuple[list, str]] = [
        ([(x, 1, 2)], "item 0 of Pairs is a tuple of 3"),
        ([x, {"x": x}], "item 1 of Pairs is a dict"),
        ([(x, "cat")], "label of item 0 of Pairs is 'cat'"),
        ([(x, None)], "label of item 0 of Pairs is None"),
    ]
    for items, message in of_wrong_type:
        with pytest.raises(TypeError, match=message):
            load(Pairs(items))
    of_wrong_value: list[tuple[list, str]] = [
        ([], "empty"),
        ([x, torch.zeros(4)], r"item 1 of Pairs has shape \(4,\).*item 0 of Pairs has \(3,\)"),
        ([x, torch.zeros(3, dtype=torch.uint8)], "item 1 of Pairs.*uint8"),
        ([(x, 1), x], r"2 data, but labels of shape \(1,\)"),
        ([Image.new("I;16", (3, 3))], "PIL mode 'I;16', more than 8 bits"),
    ]
    for items, message in of_wrong_value:
        with pytest.raises(ValueError, match=message):
            load(Pairs(items))


def test_flat_image_folder(tmp_path: Path) -> None:
    for i in range(10):
        Image.new("L", (5, 4), 20 * i).save(tmp_path / f"{i}.png")
    (tmp_path / ".hidden.png").touch()
    (tmp_path / "notes.txt").touch()
    data = load(str(tmp_path), valid=0, test=0)
    assert data.name == tmp_path.name
    assert data.train.y is None
    assert torch.allclose(data.train.x[:, 0, 0, 0] * 255, 20.0 * torch.arange(10))
    Image.new("RGBA", (5, 4), (255, 0, 0, 9)).save(tmp_path / "a.png")
    data = load(tmp_path, valid=0, test=0)
    assert data.shape == (3, 4, 5)
    assert data.train.x[-1, :, 0, 0].tolist() == [1, 0, 0]
    Image.new("L", (5, 5)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png has shape \(3, 5, 5\).*0\.png has \(3, 4, 5\).*resize"):
        load(tmp_path)


def test_image_folder_with_classes(tmp_path: Path) -> None:
    for label, kind in enumerate(("cats", "dogs")):
        (tmp_path / kind).mkdir()
        for i in range(5):
            Image.new("RGB", (5, 4), (0, 51, 100 * label)).save(tmp_path / kind / f"{i}.png")
    data = load(tmp_path, valid=0, test=2)
    assert data.shape == (3, 4, 5)
    assert data.train.y is not None
    assert torch.allclose(data.train.x[:, 2, 0, 0] * 255, 100.0 * data.train.y)
    (tmp_path / "c.png").touch()
    with pytest.raises(ValueError, match="1 images and 2 subfolders"):
        load(tmp_path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 images and 0 subfolders"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (torch.tensor([[0.0, 1], [float("nan"), float("inf")]]), ValueError, r"2 values.*first at index \(1, 0\)"),
        (torch.tensor([[1e300]], dtype=torch.float64), ValueError, "not finite"),
        (torch.zeros(5), ValueError, r"shape \(5,\); expected"),
        (torch.zeros(0, 5), ValueError, r"shape \(0, 5\); expected"),
        (torch.zeros(5, 2, dtype=torch.int64), TypeError, "int64, whose scale is unknown.*tokens=True"),
        (torch.ones(5, 2, dtype=torch.uint8), ValueError, "only 0 and 1; give it as bool"),
        (np.array([["a"]]), TypeError, "the array has dtype <U1"),
        ([[0.0]], TypeError, "from a list; expected a name"),
        (DataLoader(TensorDataset(torch.zeros(2, 2))), TypeError, "DataLoader goes to fit directly"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_values(source: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(source)  # type: ignore[arg-type]


def test_tokens_of_every_integer_type() -> None:
    rows = np.array([[3, 4, 1], [5, 1, 0]])
    for dtype in (np.uint8, np.int32, np.uint64):
        assert load(rows.astype(dtype), tokens=True, valid=0, test=0).train.x.tolist() == rows.tolist()
    with pytest.raises(ValueError, match="needs rows of token numbers"):
        load(np.array([[2**63, 1]], dtype=np.uint64), tokens=True, valid=0, test=0)


def test_tokens_stay_as_they_are(tmp_path: Path) -> None:
    rows = torch.randint(0, 300, (10, 4))
    data = load(rows, tokens=True, valid=0, test=0.2, binarize="auto")
    assert data.train.x.dtype == torch.int64
    found = torch.cat([data.train.x, data.test.x])
    assert sorted(found.tolist()) == sorted(rows.tolist())
    np.savez(tmp_path / "rows.npz", x=rows.numpy())
    again = load(tmp_path / "rows.npz", tokens=True, valid=0, test=0.2)
    assert torch.equal(again.train.x, data.train.x)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("digits", {}, "'digits' holds images, no tokens"),
        (torch.zeros(4, 3), {}, "the tensor has shape .4, 3. and dtype torch.float32, and tokens=True needs"),
        (torch.full((4, 3), -1), {}, "integers .N, length. from 0"),
        (torch.zeros(4, 3, 2, dtype=torch.int64), {}, "has shape .4, 3, 2."),
        (
            torch.zeros(4, 3, dtype=torch.int64),
            {"binarize": "static"},
            "for rows of token numbers, got binarize='static'",
        ),
    ],
)
def test_no_tokens(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(source, tokens=True, **options)


def test_bool_is_zero_and_one() -> None:
    x = torch.eye(6).bool()
    assert torch.equal(load(x, valid=0, test=0, binarize="static").train.x, torch.eye(6))


# --- splits


def test_splits_are_disjoint_and_exhaustive() -> None:
    x = numbered(100, 3)
    data = load(x, valid=0.25, test=0.2)
    assert [len(part) for part in parts(data)] == [60, 20, 20]
    everything = torch.cat([part.x for part in parts(data)])
    assert not torch.equal(everything, x)
    assert torch.equal(everything[everything[:, 0].argsort()], x)
    assert torch.allclose(data.mean, data.train.x.mean(0))


def test_splits_follow_the_seed() -> None:
    x = numbered(100, 3)
    state = torch.get_rng_state()
    first, again, other = load(x, seed=3), load(x, seed=3), load(x, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.train.x, again.train.x)
    assert not torch.equal(held_out(first).x, held_out(other).x)
    assert torch.equal(held_out(load(x, seed=3, valid=0)).x, held_out(first).x)  # whatever `valid` is


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"valid": 1.0}, ValueError, r"valid=1\.0: a fraction"),
        ({"test": -0.1}, ValueError, r"test=-0\.1: a fraction"),
        ({"test": float("nan")}, ValueError, "test=nan: a fraction"),
        ({"test": -1}, ValueError, "test=-1: a count"),
        ({"test": 0.01}, ValueError, r"test=0\.01 of 10 data is an empty split"),
        ({"test": 10}, ValueError, "test=10 takes 10 of 10 data and leaves none to train on"),
        ({"test": 4, "valid": 6}, ValueError, "valid=6 takes 6 of 6 data and leaves none"),
        ({"test": 5000}, ValueError, "takes 5000 of 10"),
        ({"valid": True}, TypeError, "valid=True"),
        ({"valid": "0.1"}, TypeError, "valid='0.1'"),
        ({"binarize": "fixed"}, ValueError, "binarize='fixed': expected one of 'none', 'dynamic'"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(torch.zeros(10, 2), **arguments)


def test_describe_and_to() -> None:
    data = load("digits", binarize="dynamic", flatten=True, valid=0)
    about = data.describe()
    assert json.loads(json.dumps(about)) == about
    assert about == data.to("cpu").describe()
    assert {key: about[key] for key in about if key not in ("fingerprint", "contents")} == {
        "name": "digits",
        "binarize": "dynamic",
        "shape": [64],
        "flatten": True,
        "counts": {"train": 1438, "valid": 0, "test": 359},
        "seed": 0,
    }
    assert about["fingerprint"] != load("digits", flatten=True, valid=0, seed=1).describe()["fingerprint"]
    for split, other in (("train", "test"), ("test", "train")):
        changed = load("digits", binarize="dynamic", flatten=True, valid=0)
        part = getattr(changed, split)
        part.y = part.y.clone()
        part.y[0] = (part.y[0] + 1) % 10
        now = changed.describe()
        assert now["fingerprint"] == about["fingerprint"]
        assert now["contents"][split] != about["contents"][split]
        assert now["contents"][other] == about["contents"][other]
    moved = load("digits", binarize="dynamic").to("meta")
    for part in parts(moved):
        assert part.y is not None
        assert part.x.device.type == part.y.device.type == part.head(3).device.type == "meta"
    assert repr(data.train) == "Split(1438 data, shape (64,), labeled)"


# --- binarization


@pytest.mark.parametrize("binarize", ["threshold", "static", "dynamic"])
def test_binarized_data_are_binary(binarize: str) -> None:
    data = load("digits", binarize=binarize, flatten=True)  # type: ignore[arg-type]
    for part in parts(data):
        assert part.x.dtype == torch.float32
        assert part.x.unique().tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 4, 3), (4, 2, 2)])
def test_colors_are_no_probabilities(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, *shape), dtype=np.uint8)
    colors = load(values, binarize="auto", flatten=True)
    assert (colors.binarize, colors.origin["binarize"]) == ("none", "none")
    assert colors.train.x.unique().numel() > 2
    assert load(torch.from_numpy(values).float() / 255, binarize="auto").binarize == "none"
    for gray in (values[:, 0], values[:, :1], values[:, :2, 0]):
        assert load(gray, binarize="auto").binarize == "dynamic"


def test_threshold() -> None:
    x = torch.tensor([[0.0, 0.5, 0.50001, 1.0]])
    assert load(x, binarize="threshold", valid=0, test=0).train.x.tolist() == [[0, 0, 1, 1]]


def test_draws_have_the_intensities_as_their_mean() -> None:
    probs = torch.tensor([0.0, 1 / 255, 0.3, 0.9, 1.0])
    x = probs.expand(40_000, 5)
    standard_error = (probs * (1 - probs) / 20_000).sqrt()
    static = load(x, binarize="static", valid=0, test=0.5)
    dynamic = load(x, binarize="dynamic", valid=0, test=0.5)
    torch.manual_seed(0)
    for part in (static.train, held_out(static), dynamic.train, held_out(dynamic)):
        assert ((part.x.mean(0) - probs).abs() <= 4 * standard_error).all()
    (batch,) = dynamic.train.batches(20_000, shuffle=True)
    assert ((batch[0].mean(0) - probs).abs() <= 4 * standard_error).all()
    assert torch.allclose(dynamic.mean, probs)


def test_static_is_drawn_once_from_its_own_seed() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = load("digits", binarize="static", seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    again = load("digits", binarize="static", seed=5)
    for one, two in zip(parts(first), parts(again), strict=True):
        assert torch.equal(one.x, one.x)
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.x, one.intensity)


def test_dynamic_is_fresh_in_training_and_fixed_elsewhere() -> None:
    torch.manual_seed(0)
    grey = load("digits")
    data = load("digits", binarize="dynamic")
    train = data.train
    assert torch.equal(train.intensity, grey.train.x)
    assert not torch.equal(train.x, train.x)
    assert not torch.equal(train.head(20), train.head(20))
    (one,), (two,) = next(train.batches(20)), next(train.batches(20))
    assert not torch.equal(one, two)
    torch.manual_seed(2)
    drawn = train.x
    torch.manual_seed(2)
    assert torch.equal(drawn, train.x)  # from the global random state
    again = load("digits", binarize="dynamic")
    for part, same, underlying in zip(parts(data)[1:], parts(again)[1:], parts(grey)[1:], strict=True):
        assert torch.equal(part.x, same.x)
        assert torch.equal(part.head(20), part.x[:20])
        assert torch.equal(next(part.batches(20))[0], part.x[:20])
        assert torch.equal(part.intensity, underlying.x)
    assert torch.equal(held_out(load("digits", binarize="dynamic", valid=0)).x, held_out(data).x)


def test_binarization_needs_probabilities(tmp_path: Path) -> None:
    x = torch.zeros(10, 2)
    x[3, 1] = -0.5
    with pytest.raises(ValueError, match=r"binarize='dynamic' needs values in \[0, 1\].*\[-0.5, 0\]"):
        load(x, binarize="dynamic")
    np.savez(tmp_path / "own.npz", x=np.zeros((5, 2)), x_test=np.full((5, 2), 2.0))
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        load(tmp_path / "own.npz", binarize="threshold")


# --- head and batches


def test_head() -> None:
    split = Split(numbered(5, 2))
    assert torch.equal(split.head(5), split.x)
    for n in (0, -1, 6):
        with pytest.raises(ValueError, match=rf"head\({n}\): expected a number from 1 to 5"):
            split.head(n)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_cover_the_data_once(shuffle: bool) -> None:
    torch.manual_seed(0)
    split = Split(numbered(10, 2), torch.arange(10))
    batches = list(split.batches(4, shuffle=shuffle, with_labels=True))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    labels = torch.cat([y for _, y in batches])
    assert torch.equal(labels, torch.arange(10)) != shuffle
    assert labels.sort().values.tolist() == list(range(10))
    assert torch.equal(torch.cat([x for x, _ in batches]), split.x[labels])
    assert [len(x) for (x,) in split.batches(4, shuffle=shuffle, drop_last=True)] == [4, 4]
    assert [len(x) for (x,) in split.batches(5, shuffle=shuffle, drop_last=True)] == [5, 5]


def test_the_generator_decides_the_order() -> None:
    x = torch.arange(50)

    def order(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([batch for (batch,) in batches_of((x,), 8, shuffle=True, generator=generator)])

    state = torch.get_rng_state()
    assert torch.equal(order(0), order(0))
    assert not torch.equal(order(0), order(1))
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(0)  # one generator goes on from epoch to epoch
    epochs = [torch.cat([b for (b,) in batches_of((x,), 8, shuffle=True, generator=generator)]) for _ in range(2)]
    assert torch.equal(epochs[0], order(0))
    assert not torch.equal(epochs[0], epochs[1])


def test_the_generator_may_live_elsewhere_than_the_data() -> None:
    split = Split(torch.rand(5, 2), torch.arange(5), dynamic=True).to("meta")
    for x, y in split.batches(5, shuffle=True, generator=torch.Generator(), with_labels=True):
        assert x.device.type == y.device.type == "meta"


def test_bad_batches() -> None:
    x = torch.zeros(5, 2)
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        Split(x).batches(0)
    with pytest.raises(ValueError, match="batch_size=6 is more than the 5 data"):
        Split(x).batches(6)
    with pytest.raises(ValueError, match="this split has no labels"):
        Split(x).batches(2, with_labels=True)
    with pytest.raises(ValueError, match=r"equal first dimension, got shapes \[\(5, 2\), \(4,\)\]"):
        batches_of((x, torch.zeros(4)), 2)
    for tensors in ((), (torch.tensor(1.0),)):
        with pytest.raises(ValueError, match="equal first dimension"):
            batches_of(tensors, 2)
    with pytest.raises(TypeError, match=r"write \(x,\)"):
        batches_of(x, 2)  # type: ignore[arg-type]


def test_labels_for_the_pair() -> None:
    some = load("digits", labels=25).train
    assert some.y is not None
    assert some.given is not None
    known = some.given >= 0
    assert torch.equal(some.given[known], some.y[known])
    assert int(known.sum()) == 25
    assert set(some.given[known].bincount().tolist()) == {2, 3}
    every = load("digits", labels="all")
    assert every.test is not None
    x, given = every.test.args(5)
    assert torch.equal(x, every.test.head(5))
    assert torch.equal(given, every.test.y[:5])  # type: ignore[index]
    order = torch.Generator().manual_seed(0)
    for (_, given), (_, y) in zip(
        every.train.batches(100, shuffle=True, generator=order),
        load("digits").train.batches(100, shuffle=True, generator=order.manual_seed(0), with_labels=True),
        strict=True,
    ):
        assert torch.equal(given, y)
    with pytest.raises(ValueError, match="a number from 10"):
        load("digits", labels=3)
    with pytest.raises(ValueError, match="got none"):
        load(torch.rand(8, 3), labels="all")
