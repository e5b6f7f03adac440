"""Ray Core as an engine: a worker for each GPU or group of cores of a cluster, the volumes on its shared disk."""
