"""The client role: a Flower ClientApp that trains and evaluates a mixture on its own data."""
