"""One file for each op: its contract (shapes, checks, schema, fake, gradient) and its dispatch to the backends."""
