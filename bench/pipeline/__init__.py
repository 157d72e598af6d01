"""The pipeline worker measured beside others; see ../README.md."""
