"""Read results under a lease."""
