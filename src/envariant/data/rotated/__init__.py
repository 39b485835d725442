"""Rotated MNIST and the rotation of 8-bit images."""
