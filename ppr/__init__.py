"""Personalised PageRank: graph store, walk kernels, fingerprints, queries, and the engines that run them."""
