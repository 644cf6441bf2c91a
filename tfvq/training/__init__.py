"""One way to train, sample and measure every system."""
