"""Gates whose budget follows a metric that is read from elsewhere."""
