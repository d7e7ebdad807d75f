"""Send one request to the gateway and classify the response."""
