"""One epoch of MNIST, everything included: this library against Pyro's example, PyTorch by hand, NumPyro and pythae.

    python examples/benchmarks/epoch.py                       # needs `pip install -e .[bench]` for the last two
    python examples/benchmarks/epoch.py --data digits --epochs 3

The network is that of `training.py`, at batch 128. "Everything" is shuffling, the steps, and what each does at the end
of an epoch of its own accord: `pv.fit` measures the ELBO on 1000 images. Pyro goes through a `DataLoader`, as its
example does; PyTorch by hand and NumPyro cut batches from a tensor, as `fit` does; pythae brings its trainer. After
each epoch of `fit` each of the others runs one, so that all see the same machine (compiled, `fit` trains alone
afterwards); the table shows medians without the first two epochs, in which things are compiled. At the end the test
ELBO of each.

With `--epochs 5` on a 2-core CPU, two threads, torch 2.15, NumPyro 0.22, pythae 0.1.2, seconds and test ELBO: Pyro's
example 3.31 and -93.63, PyTorch by hand 1.67 and -93.48, NumPyro 1.21 and -95.26, pythae 2.75 and -93.28, `pv.fit` 2.15
and -93.58, compiled 1.39 and -93.65. NumPyro's loop neither shuffles nor takes the last 96 images, which is what its
lower ELBO is taken to come from; steps alone it is behind (`training.py`).
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.support.random import fork_rng

from bench import DATA, LATENT, LR, Networks, gemm_rate, machine, make_table, numpyro_jit, step_flops

Epoch = Callable[[], object]
Elbo = Callable[[Tensor], float]
BATCH = 128


def elbo_of(nets: Networks) -> Elbo:
    def elbo(x: Tensor) -> float:
        with torch.no_grad(), fork_rng(0):
            return -float(nets.loss(x)) / len(x)

    return elbo


def pyro_example(x: Tensor) -> tuple[Epoch, Elbo]:
    nets = Networks()
    optimizer = pyro.optim.Adam({"lr": LR})  # type: ignore[attr-defined]
    svi = pyro.infer.SVI(nets.model, nets.guide, optimizer, pyro.infer.TraceMeanField_ELBO())
    loader = DataLoader(TensorDataset(x), batch_size=BATCH, shuffle=True)

    def epoch() -> float:
        with pyro.validation_enabled(True):  # as Pyro comes
            return sum(svi.step(batch) for (batch,) in loader)

    return epoch, elbo_of(nets)


def by_hand(x: Tensor) -> tuple[Epoch, Elbo]:
    nets = Networks()
    optimizer = torch.optim.Adam(nets.parameters(), LR, fused=True)

    def epoch() -> Tensor:
        total = torch.zeros(())
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = nets.loss(x[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total

    return epoch, elbo_of(nets)


def numpyro_loop(x: Tensor) -> tuple[Epoch, Elbo]:
    step, elbo = numpyro_jit(list(x.split(BATCH))[:-1], len(x) // BATCH)  # without shuffling: in its favor
    return lambda: step(0), elbo


def pythae_trainer(x: Tensor) -> tuple[Epoch, Elbo]:
    os.environ["TQDM_DISABLE"] = "1"  # its bars would stand across the table
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.WARNING)
    nets = Networks()

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nets.encoder

        def forward(self, x: Tensor) -> Any:
            loc, log_scale = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nets.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    config = VAEConfig(input_dim=(DATA,), latent_dim=LATENT, reconstruction_loss="bce")
    vae = VAE(config, encoder=Encoder(), decoder=Decoder())
    trainer = BaseTrainer(
        vae,
        BaseDataset(x, torch.zeros(len(x))),
        training_config=BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=BATCH,
            learning_rate=LR,
            num_epochs=1,
            no_cuda=True,
        ),
    )
    trainer.prepare_training()
    epochs = iter(range(1, 1000))
    return lambda: trainer.train_step(next(epochs)), elbo_of(nets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="mnist or fashion_mnist; digits are padded to their size")
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    console, rate = Console(), gemm_rate()
    data = pv.data.load(options.data, binarize="threshold", flatten=True, valid=0.0)
    x, test = (torch.nn.functional.pad(split.x, (0, DATA - split.x.shape[1])) for split in (data.train, data.test))
    console.print(f"{len(x)} images; {machine()}, matrix products at {rate / 1e9:.0f} GFLOP/s")
    rivals: dict[str, tuple[Epoch, Elbo]] = {}
    makers = {"Pyro example": pyro_example, "PyTorch by hand": by_hand}
    for name, make in {**makers, "NumPyro jitted": numpyro_loop, "pythae": pythae_trainer}.items():
        try:
            rivals[name] = make(x)
        except ImportError as error:
            console.print(f"no row of {name}: {error}")
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    elbos: dict[str, float] = {}
    for name, compiled in (("pv.fit", False), ("pv.fit compiled", True)):
        nets = Networks()
        seconds[name], since = [], time.perf_counter()

        def others(state: Any, name: str = name, compiled: bool = compiled) -> None:
            nonlocal since
            seconds[name].append(time.perf_counter() - since)
            for rival, (epoch, _) in rivals.items():
                if not compiled:
                    started = time.perf_counter()
                    epoch()
                    seconds[rival].append(time.perf_counter() - started)
            since = time.perf_counter()

        pv.fit(
            nets.model,
            nets.guide,
            x,
            epochs=options.epochs,
            batch_size=BATCH,
            lr=LR,
            seed=0,
            compile=compiled,
            device="cpu",
            progress=True,
            callbacks=[others],
        )
        elbos[name] = elbo_of(nets)(test)
    elbos |= {name: elbo(test) for name, (_, elbo) in rivals.items()}
    flops = step_flops(len(x))
    title = f"an epoch of {len(x)} images at batch {BATCH}, medians of {options.epochs - 2}"
    table = make_table(title, "", "seconds", "/ Pyro", "/ PyTorch", "GEMM fraction", "test ELBO")
    middle = {name: statistics.median_high(s[2:]) for name, s in seconds.items()}
    for name, value in middle.items():
        table.add_row(
            name,
            f"{value:.2f}",
            f"{value / middle['Pyro example']:.2f}",
            f"{value / middle['PyTorch by hand']:.2f}",
            f"{flops / value / rate:.0%}",
            f"{elbos[name]:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
