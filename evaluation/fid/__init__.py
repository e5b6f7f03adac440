"""FID and KID in 2.5D: slices, feature networks, distances."""
