"""Procedures: what needs networks, inner steps or data of its own making, and so takes no other parts."""
