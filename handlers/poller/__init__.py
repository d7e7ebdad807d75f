"""Claims Redis requests under a lease, dispatches them and settles them."""
