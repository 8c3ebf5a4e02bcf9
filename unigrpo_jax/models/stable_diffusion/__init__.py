"""Stable Diffusion 1.x (arXiv 2112.10752): a U-Net that predicts the noise of a latent, upon a text."""
