"""moerun runs Mixture-of-Experts language models that are larger than the machine's memory."""

__version__ = "0.1.0"
