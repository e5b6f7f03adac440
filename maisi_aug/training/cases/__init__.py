"""Training cases: phantoms and prepared CTs, their latents encoded once, batches drawn ahead."""
