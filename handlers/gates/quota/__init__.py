"""Gates that count requests: tenant quotas, leased rates and local concurrency."""
