"""Async Processor. Its folders follow a request's path (docs/architecture.md).

  Pub/Sub push ─▶ doors/pubsub ──────────┐
  Knative source ─▶ doors/cloudevents ───┼─▶ contract (Request) ─▶ gates ─▶ forward ─▶ gateway
  Redis ─▶ poller ─▶ doors/cloudevents ──┘                                     │
     ▲                                                                         ▼ Outcome
     └── redis_store: ack, nack ◀── poller ◀── doors: result event, or 429/503
                                    pubsub ◀── doors: result published, then 204

`settings` is read once, `wiring` builds the parts, `main` holds the entry points, `cli` the commands.
"""
