"""Read results under a lease; offloaded payloads."""
