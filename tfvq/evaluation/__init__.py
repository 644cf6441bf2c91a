"""Metrics of trained models, and sections of reports."""
