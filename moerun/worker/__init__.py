"""Lending a device to other machines, and using what they lend."""
