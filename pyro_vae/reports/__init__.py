"""A run or a comparison as one page to look at; the latent explorer."""

from pyro_vae.reports.explorer import explore
from pyro_vae.reports.reporting import Report, report

__all__ = ["Report", "explore", "report"]
