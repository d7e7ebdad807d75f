"""The same operations for Redis Cluster, where keys of one request lie in several slots."""
