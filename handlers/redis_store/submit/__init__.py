"""Submission, cancellation and look-up of requests by producers."""
