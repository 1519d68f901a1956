# %% [markdown]
"""
# Diagnosing collapse: how it looks, how it is told from a latent space that is small, and two remedies
"""

# %%
import pyro
import torch

import pyro_vae as pv

EPOCHS = 15

# %%
data = pv.data.load("digits", binarize="dynamic", flatten=True)
x = data.test.x


def trained(**options: object) -> pv.VAE:
    """A VAE after a training with these options of `fit`."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    vae = pv.VAE(64, latent_dim=10, hidden=(100,)).start_at_mean(data.mean)
    pv.fit(vae.model, vae.guide, data, **{"epochs": EPOCHS, "lr": 3e-3, "seed": 0, **options})  # type: ignore[arg-type]
    return vae


def show(vae: pv.VAE) -> pv.evaluate.LatentReport:
    """ELBO and the latent report."""
    report = pv.latent_report(vae.model, vae.guide, x, seed=0)
    print(pv.bound(vae.model, vae.guide, x, seed=0))
    print(f"KL {report.kl:.2f} nats, {report.count('active')} of {len(report.dimensions)} dimensions active")
    print(report.warning or "no warning")
    return report


# %% [markdown]
"""
## Collapse on purpose

A weight of 30 on the KL makes it too expensive to say anything. q(z|x) becomes the prior.
"""

# %%
collapsed = trained(kl_weight=30.0)
show(collapsed).plot()

# %% [markdown]
"""
All bars are at 0: the decoder ignores z, and every reconstruction is the mean digit.
"""

# %%
pv.plots.reconstructions(x[:10], pv.reconstruct(collapsed.model, collapsed.guide, x[:10], seed=0))

# %% [markdown]
"""
## The ordinary training
"""

# %%
plain = trained()
show(plain).plot()

# %% [markdown]
"""
Some dimensions can have little KL here, and that is no fault: the data need no more of them. Compare the ELBO, not
the count.

## Two remedies

A warm-up lets the KL count slowly. Free bits leave some of it free. Both are objectives: the ELBO below is the true
one.
"""

# %%
show(trained(kl_weight=pv.elbo.Warmup(max(1, EPOCHS // 2)))).plot()

# %%
show(trained(elbo=pv.elbo.FreeBits(bits=0.1))).plot()
