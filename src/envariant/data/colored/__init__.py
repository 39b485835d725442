"""Data sources of colored digits: Colored MNIST in several protocols, and a small data set."""
