"""Async Processor: the way of a request is the layout of this package.

  Pub/Sub push ─▶ doors/pubsub_push ─┐
  Knative source ─▶ doors/dispatch ──┼─▶ contract (Request) ─▶ gates ─▶ forward ─▶ gateway
  Redis ─▶ poller ─▶ doors/dispatch ─┘                                     │
     ▲                                                                     ▼ Outcome
     └── redis_store: ack, nack ◀── poller ◀── doors: result event, or 429/503
                                    pubsub ◀── doors: result published, then 204

`settings` is read once, `app` wires the parts, `main` holds the entry points, `cli` the command.
"""
