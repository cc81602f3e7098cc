"""Measurements beside plain llama-cpp-python; `make bench` runs them."""
