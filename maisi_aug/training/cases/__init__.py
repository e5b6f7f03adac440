"""Training cases: phantoms and prepared CTs, latents encoded once, batches drawn ahead."""
