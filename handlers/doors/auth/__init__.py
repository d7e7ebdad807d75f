"""Authentication of callers: shared bearer tokens and OIDC tokens of Pub/Sub push."""
