"""Reading results under a lease."""
