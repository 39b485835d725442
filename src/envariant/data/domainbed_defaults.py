"""Settings of DomainBed for its MNIST data sets."""

from envariant.core.environments import DefaultSettings


def mnist_settings(algorithm: str, departures: str) -> DefaultSettings:
    """Return DomainBed's default settings of an algorithm for ColoredMNIST and RotatedMNIST.

    Args:
        algorithm: Name of the algorithm.
        departures: Differences from DomainBed, as text for users.
    """
    coefficient = {"irm": "step(1, 100, at=500)", "vrex": "step(1, 10, at=500)"}.get(algorithm)
    return DefaultSettings(
        {"coefficient": coefficient, "normalize_loss": False} if coefficient else {},
        model="mnist-cnn",
        steps=5001,
        batch_size=64,
        source=f"DomainBed defaults, with {departures}",
    )
