"""The poller measured beside Telegraf; see ../README.md."""
