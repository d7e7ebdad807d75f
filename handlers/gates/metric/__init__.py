"""Gates whose budget follows a metric (Prometheus, a metrics page, Redis)."""
