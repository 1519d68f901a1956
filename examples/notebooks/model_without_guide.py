# %% [markdown]
"""
# A model without a guide: one is made from the model's graph, with networks for local latents
"""

# %%
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv

EPOCHS = 400
SAMPLES = 500

# %% [markdown]
"""
## A model

Each person has a rate of calls, and all rates come from one population. The counts are seen, the rates and the
population are not.
"""


# %%
def model(calls: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("people", len(calls)):
        log_rate = pyro.sample("log_rate", dist.Normal(mean, 0.5))
        pyro.sample("calls", dist.Poisson(log_rate.exp()), obs=calls)


torch.manual_seed(0)
pyro.clear_param_store()
rates = (0.7 + 0.5 * torch.randn(400)).exp()
calls = torch.poisson(rates)

# %% [markdown]
"""
## Its guide
"""

# %%
guide = pv.AmortizedGuide(model, calls)
print(guide)

# %%
guide.plot()

# %%
pv.fit(model, guide, calls, epochs=EPOCHS, batch_size=len(calls), lr=1e-2, seed=0)

# %% [markdown]
"""
## What it is worth

The population's mean is shared by all data. So there is one number, for all data together.
"""

# %%
print(pv.bound(model, guide, calls, num_samples=10, seed=0))
print(pv.log_marginal(model, guide, calls, num_samples=SAMPLES, seed=0))

# %% [markdown]
"""
The weights are those of 400 rates at once, so that few of the samples count, and the result says so. For one person at
a known mean there is no such problem: hold the mean fixed in the model, and ask again.
"""


# %%
def of_one(calls: Tensor) -> None:
    with pyro.plate("people", len(calls)):
        log_rate = pyro.sample("log_rate", dist.Normal(0.7, 0.5))
        pyro.sample("calls", dist.Poisson(log_rate.exp()), obs=calls)


pyro.clear_param_store()
own = pv.AmortizedGuide(of_one, calls)
pv.fit(of_one, own, calls, epochs=EPOCHS // 4 + 1, lr=1e-2, seed=0)
print(pv.log_marginal(of_one, own, calls, num_samples=SAMPLES, seed=0))
