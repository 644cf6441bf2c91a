"""Discrete codes for images and speech: VQ-VAE, PixelCNN, WaveNet."""
