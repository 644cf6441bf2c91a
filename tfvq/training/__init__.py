"""Training of all systems, and the workdir of a run."""
