"""What differs between images, speech and video."""
