"""The health of a pair's latents: KL, activity, information, the aggregate posterior, collapse."""
