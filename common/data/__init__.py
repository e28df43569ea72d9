"""The wire: what is in the messages between server and clients. Nothing else travels."""
