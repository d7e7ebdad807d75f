"""Gates that limit requests: quotas, leased rates and local concurrency."""
