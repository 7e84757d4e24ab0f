"""Places to send a request to."""
