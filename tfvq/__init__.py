"""Discrete codes for images, speech and video: VQ-VAE, PixelCNN, WaveNet."""
