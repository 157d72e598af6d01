"""The pipeline worker measured beside others; see ../README.md."""

from poller import configs, servers

# Apart from the poller's measurements, whose servers these are otherwise.
servers.WORK = servers.CACHE / "bench-pipeline"
configs.BROKER = "127.0.0.1:9292"
