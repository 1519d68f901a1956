# %% [markdown]
"""
# From Pyro's VAE tutorial to here: the same script with one import changed, and what each further step gains

The class below has the shape of the one in Pyro's tutorial. It stays as it is to the end.
"""

# %%
import pyro
import pyro.distributions as dist
import torch
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyro_vae as pv

EPOCHS = 10
SAMPLES = 500

# %%
torch.manual_seed(0)
pyro.clear_param_store()


class TutorialVAE(nn.Module):
    def __init__(self, size: int = 64, z_dim: int = 10, hidden: int = 100) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.encoder = nn.Sequential(nn.Linear(size, hidden), nn.Softplus(), nn.Linear(hidden, 2 * z_dim))
        self.decoder = nn.Sequential(nn.Linear(z_dim, hidden), nn.Softplus(), nn.Linear(hidden, size))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], self.z_dim), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


data = pv.data.load("digits", binarize="dynamic", flatten=True)
vae = TutorialVAE()

# %% [markdown]
"""
## Step one: the import

`pyro.infer.SVI` becomes `pv.SVI`. The loop stays.
"""

# %%
svi = pv.SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), loss=pyro.infer.Trace_ELBO())
for _ in range(2):
    total = sum(float(svi.step(x)) for (x,) in data.train.batches(128, shuffle=True))
    print(f"{total / len(data.train):.2f} nats per datum")

# %% [markdown]
"""
## Step two: no loop

Gained: checks before the first step, validation, the best weights kept, a run that repeats to the bit.
"""

# %%
history = pv.fit(vae.model, vae.guide, data, epochs=EPOCHS, lr=3e-3, seed=0)
history.plot()

# %% [markdown]
"""
## Step three: numbers that can be compared

Gained: log p(x) with its error, beside the ELBO.
"""

# %%
x = data.test.x
print(pv.summarize(vae.model, vae.guide, x, num_samples=SAMPLES, seed=0))

# %% [markdown]
"""
## Step four: is the guide right?

Gained: a test of the guide on data that the model simulates.
"""

# %%
found = pv.calibration(vae.model, vae.guide, x, num_simulations=min(SAMPLES, 300), seed=0)
print(found.verdict)
found.plot()
