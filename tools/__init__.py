"""Tools beside the product: what runs on machines that are only lent."""
