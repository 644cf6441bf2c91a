"""One file per system of the paper, each with the variants `small` and `paper`."""
