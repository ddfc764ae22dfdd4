"""Process mode: a pool of worker processes, each of which serves one request at a time."""
