"""Choice of a model and items for each user, on the graph and fingerprints of ``ppr``."""
