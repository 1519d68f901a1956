"""Networks: shapes, leading dimensions, initialization, output bias, errors."""

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.nets import ACTIVATIONS, MLP, ConvDecoder, ConvEncoder, ResidualDecoder, ResidualEncoder, as_sizes, lookup

IMAGES = [(1, 1, 1), (2, 5, 7), (1, 28, 28), (3, 33, 17)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


Net = MLP | ConvEncoder | ConvDecoder


def build(kind: str, image: tuple[int, int, int] = (2, 5, 7)) -> Net:
    nets: dict[str, Net] = {
        "mlp": MLP(6, (8, 8), 4, "tanh"),
        "mlp_encoder": MLP(image, (8,), 4, "tanh"),
        "mlp_decoder": MLP((3, 2), (8,), image, "tanh"),
        "linear": MLP(image, (), image),
        "conv_encoder": ConvEncoder(image, 4, (4, 8), 16, "tanh"),
        "conv_decoder": ConvDecoder((3, 2), image, (8, 4), 16, "tanh"),
        "residual_encoder": ResidualEncoder(image, (3, 2), (4, 8), 16, "tanh"),
        "residual_decoder": ResidualDecoder(4, image, (8, 4), 16, "tanh", blocks=2),
    }
    return nets[kind]


KINDS = [
    "mlp",
    "mlp_encoder",
    "mlp_decoder",
    "linear",
    "conv_encoder",
    "conv_decoder",
    "residual_encoder",
    "residual_decoder",
]


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_leading_dimensions_are_free_for_any_image_size(kind: str, image: tuple[int, int, int]) -> None:
    net = build(kind, image).double()
    x = torch.randn(3, 2, *net.in_shape, dtype=torch.double)
    y = net(x)
    assert y.shape == (3, 2, *net.out_shape)
    for i in range(3):
        torch.testing.assert_close(net(x[i]), y[i])
        for j in range(2):
            torch.testing.assert_close(net(x[i, j]), y[i, j])
    expanded = x[:1].expand(5, *x.shape[1:])  # stride 0
    torch.testing.assert_close(net(expanded), y[:1].expand(5, *y.shape[1:]))
    torch.testing.assert_close(net(x.transpose(0, 1)), y.transpose(0, 1))
    assert net(x[:0]).shape == (0, 2, *net.out_shape)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    net = build(kind)
    net(torch.randn(4, *net.in_shape)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_state_round_trip_without_shared_tensors(kind: str) -> None:
    net, other = build(kind), build(kind)
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, *net.in_shape)
    torch.testing.assert_close(other(x), net(x), rtol=0, atol=0)
    pointers = [t.data_ptr() for t in net.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_input_shapes_name_both_shapes(kind: str) -> None:
    net = build(kind)
    expected = ", ".join(map(str, net.in_shape))
    for shape in [(9, *net.in_shape[:-1], net.in_shape[-1] + 1), net.in_shape[:-1], ()]:
        with pytest.raises(ValueError, match="expects") as error:
            net(torch.zeros(shape))
        assert f"(*, {expected})" in str(error.value)
        assert str(tuple(shape)) in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_glorot_weights_and_zero_biases(kind: str) -> None:
    for module in build(kind, (1, 28, 28)).modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            assert isinstance(module.bias, Tensor)
            assert module.bias.abs().max() == 0
    layer = MLP(300, (), 200).final
    bound = (6 / 500) ** 0.5
    assert 0.99 * bound < layer.weight.abs().max() <= bound


def test_set_output_bias() -> None:
    features = torch.randn(2, 5, 7)
    mlp = MLP(4, (8,), (2, 5, 7))
    before = mlp.final.weight.clone()
    mlp.set_output_bias(features)
    torch.testing.assert_close(mlp(torch.zeros(4)), features)  # zero biases keep the hidden layer at zero
    torch.testing.assert_close(mlp.final.weight, before)
    for decoder in (ConvDecoder(4, (2, 5, 7)), ResidualDecoder(4, (2, 5, 7), channels=(8,))):
        decoder.set_output_bias(features)
        channel_means = features.mean((1, 2), keepdim=True).expand(2, 5, 7)
        torch.testing.assert_close(decoder(torch.zeros(4)), channel_means)
    for net in (mlp, decoder):
        with pytest.raises(ValueError, match=r"\(2, 5, 7\).*\(2, 7, 5\)"):
            net.set_output_bias(features.transpose(1, 2))


def test_batch_members_do_not_depend_on_each_other() -> None:
    net = build("residual_encoder")
    x = torch.randn(4, 2, 5, 7)
    torch.testing.assert_close(net(x)[:1], net(x[:1]))


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations(name: str) -> None:
    assert MLP(3, (4,), 2, activation=name)(torch.zeros(3)).isfinite().all()


def test_unknown_activation_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown activation 'rellu', did you mean 'relu'"):
        MLP(3, (4,), 2, activation="rellu")
    with pytest.raises(ValueError, match="'tahn', did you mean 'tanh'"):
        ConvDecoder(3, (1, 4, 4), activation="tahn")


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match=r"in_shape must hold positive sizes, at least one, got \(0,\)"):
        MLP(0, (), 2)
    with pytest.raises(ValueError, match="in_shape must hold positive sizes, at least one, got"):
        MLP((), (), 2)
    with pytest.raises(ValueError, match=r"out_shape.*\(-3,\)"):
        MLP(1, (), -3)
    with pytest.raises(ValueError, match=r"hidden.*\(4, 0\)"):
        MLP(1, (4, 0), 1)
    with pytest.raises(TypeError, match="hidden must be an int or a sequence of ints"):
        MLP(1, (4.5,), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in_shape must have 3 sizes, got 2"):
        ConvEncoder((28, 28), 2)
    with pytest.raises(ValueError, match="out_shape must have 3 sizes"):
        ConvDecoder(2, (28, 28))
    with pytest.raises(ValueError, match="channels"):
        ConvEncoder((1, 28, 28), 2, channels=())
    with pytest.raises(ValueError, match="blocks must be at least 0, got -1"):
        ResidualEncoder((1, 28, 28), 2, blocks=-1)


def test_helpers() -> None:
    assert as_sizes([2, 3], "shape") == torch.Size([2, 3])
    assert lookup({"one": 1}, "one", "number") == 1
