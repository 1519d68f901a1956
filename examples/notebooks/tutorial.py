# %% [markdown]
"""
# Ten minutes from two functions to an honest log p(x), with two mistakes made on purpose
"""

# %%
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv

EPOCHS = 40
SAMPLES = 2000

# %% [markdown]
"""
## A pair

The data are 8 × 8 digits as zeros and ones. The model says that each has a code z of 10 numbers. The guide guesses
it. One of the two has a mistake in it.
"""

# %%
torch.manual_seed(0)
pyro.clear_param_store()
data = pv.data.load("digits", binarize="dynamic", flatten=True)
encoder = pv.nets.MLP(64, (200, 200), 2 * 10)
decoder = pv.nets.MLP(10, (200, 200), 64)


def wrong_model(x: Tensor) -> None:
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(10), 1.0))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        loc, log_scale = encoder(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


try:
    pv.preflight(wrong_model, guide, data.test.head(8))
except ValueError as error:
    print(error)

# %% [markdown]
"""
The first mistake: the ten numbers of a code belong to one datum, and nothing says so. `.to_event(1)` does.
"""


# %%
def model(x: Tensor) -> None:
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(10), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


print(pv.preflight(model, guide, data.test.head(8)))

# %% [markdown]
"""
## Training
"""

# %%
history = pv.fit(model, guide, data, epochs=EPOCHS, lr=2e-3, seed=0)
history.plot()

# %% [markdown]
"""
## The second mistake

To report a bound with few samples as log p(x). It rises with the number of samples, and only a diagnosis says when to
stop.
"""

# %%
x = data.test.x
print(pv.bound(model, guide, x, seed=0))
for num_samples in (5, 50, SAMPLES):
    print(pv.log_marginal(model, guide, x, num_samples=num_samples, seed=0))

# %% [markdown]
"""
The error is that of the mean of these data, by the noise of the samples. k-hat names the data for which it cannot be
trusted.

## Pictures
"""

# %%
few = x[:10]
pv.plots.reconstructions(few, pv.reconstruct(model, guide, few, seed=0))

# %%
pv.latent_report(model, guide, x, seed=0).plot()
