"""What server, client and simulations share."""
