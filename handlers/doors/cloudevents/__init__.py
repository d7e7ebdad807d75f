"""The dispatch door: CloudEvents from the poller and from any Knative source."""
