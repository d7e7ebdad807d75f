"""The only room that talks to Pub/Sub: publish results and requests, pull results, set up what they need."""
